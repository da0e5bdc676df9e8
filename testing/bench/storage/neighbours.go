package storage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/rootfs"
	"github.com/multipaas/multipaas/testing/bench/measure"
)

// alone is who has nobody beside him on the disk.
const alone = "alone"

// neighbours is what one volume's fsync takes beside another volume of the same disk, whose owner writes as fast as he can.
func neighbours(ctx context.Context, env *measure.Env) (results []measure.Result, err error) {
	root, err := rootfs.Store{Dir: filepath.Join(env.Dir, "root")}.Unpack(ctx,
		filepath.Join(env.Root, "dist", "payload", "images", "machine"))
	if err != nil {
		return nil, err
	}
	volumes := map[string]diskimage.Image{}
	for name, size := range map[string]int64{"quiet": 320 << 20, "loud": 3 << 30} {
		v := diskimage.Image{File: filepath.Join(env.Dir, name+".img"), Mount: filepath.Join(env.Dir, name)}
		if err := v.Ensure(ctx, size, root); err != nil {
			return nil, err
		}
		defer func() {
			err = errors.Join(err, hostmount.Unmount(v.Mount), diskimage.AwaitFree(context.WithoutCancel(ctx), v.File))
		}()
		volumes[name] = v
	}
	quiet, loud := place{dir: volumes["quiet"].Mount}, place{dir: volumes["loud"].Mount}
	env.Logf("storage: fsync beside who writes as fast as he can")
	stats, err := measure.Alternate(ctx, env.Rounds(rounds),
		measure.Contender{Name: alone, Measure: func(ctx context.Context) (measure.Sample, error) { return syncs(ctx, quiet) }},
		measure.Contender{Name: "ours", Measure: func(ctx context.Context) (sample measure.Sample, err error) {
			writing, stop := context.WithCancel(ctx)
			done := make(chan error, 1)
			go func() {
				_, err := fio(writing, loud, "2G", 60*seconds, []string{"--rw=write", "--bs=1M", "--iodepth=64", "--thread"}, "MB/s")
				done <- err
			}()
			sample, err = syncs(ctx, quiet)
			stop()
			var ended *exec.ExitError
			if errWrite := <-done; errWrite == nil || !errors.As(errWrite, &ended) && !errors.Is(errWrite, context.Canceled) {
				err = errors.Join(err, fmt.Errorf("who writes as fast as he can ended first: %w", errWrite))
			}
			return sample, err
		}})
	if err != nil {
		return nil, err
	}
	for _, what := range []string{"p50", "p99"} {
		r := measure.Result{Name: "storage/fsync of 4 KB beside who writes all he can/" + what, Unit: "ms", Better: measure.Lower,
			Ours: stats["ours"][what], Peer: alone, PeerStat: stats[alone][what]}
		if what == "p99" {
			r.Goal = measure.Goal{Ratio: 3}
		}
		results = append(results, r)
	}
	return results, nil
}

// syncs writes 4 KB at a time and has each be on the disk, 40 times a second as a database does that has little to do, and
// returns what the fsync took, in ms.
func syncs(ctx context.Context, p place) (measure.Sample, error) {
	cmd := p.command(ctx, "fio", "--name=bench", "--filename="+filepath.Join(p.dir, "small"), "--size=64M", "--ioengine=psync",
		"--rw=randwrite", "--bs=4k", "--fsync=1", "--rate_iops=40", "--time_based", fmt.Sprintf("--runtime=%d", 2*seconds),
		"--ramp_time=2", "--output-format=json")
	var out, trouble bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &trouble
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("fio: %w: %s", err, trouble.Bytes())
	}
	var said struct {
		Jobs []struct {
			Sync struct {
				Took struct {
					Percentile map[string]float64
				} `json:"lat_ns"`
			}
		}
	}
	if err := json.Unmarshal(out.Bytes(), &said); err != nil || len(said.Jobs) != 1 {
		return nil, fmt.Errorf("what fio says is not understood: %w: %s", err, out.Bytes())
	}
	took := said.Jobs[0].Sync.Took.Percentile
	if took["99.000000"] == 0 {
		return nil, fmt.Errorf("fio says nothing of what fsync took: %s", out.Bytes())
	}
	return measure.Sample{"p50": took["50.000000"] / 1e6, "p99": took["99.000000"] / 1e6}, nil
}
