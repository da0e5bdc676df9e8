// Package storage measures volumes beside what people have without us: a local one beside a folder of the same
// disk, a shared one beside GlusterFS with bricks in folders and mounted by hand; fio of Debian, past the page cache,
// in turns.
//
// Parties: testing/bench runs it; nothing else may import it.
package storage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/rootfs"
	"github.com/multipaas/multipaas/embed/gluster"
	"github.com/multipaas/multipaas/testing/bench/measure"
)

// Section is that of volumes.
func Section() measure.Section {
	return measure.Section{Name: "storage", Run: run,
		About: "a local volume beside a folder of the disk that it is on, a shared one beside GlusterFS by hand"}
}

const (
	rounds  = 5
	seconds = 6
	// What volumes were to have of the disk, as said before they were built.
	goal   = 0.95
	folder = "the file system"
)

// cases are what is done, each with how fio is told.
var cases = []struct {
	name string
	args []string
	unit string
}{
	{"read 1 MB in a row", []string{"--rw=read", "--bs=1M", "--iodepth=8"}, "MB/s"},
	{"write 1 MB in a row", []string{"--rw=write", "--bs=1M", "--iodepth=8"}, "MB/s"},
	{"read 4 KB anywhere", []string{"--rw=randread", "--bs=4k", "--iodepth=32"}, "IOPS"},
	{"write 4 KB anywhere", []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}, "IOPS"},
	{"write and fsync 4 KB", []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"}, "IOPS"},
}

func run(ctx context.Context, env *measure.Env) (results []measure.Result, err error) {
	env.VersionOf(ctx, "fio", "fio", "--version")
	for _, part := range []func(context.Context, *measure.Env) ([]measure.Result, error){local, neighbours, onHosts, claims} {
		more, errPart := part(ctx, env)
		results, err = append(results, more...), errors.Join(err, errPart)
	}
	return results, err
}

// local is a volume of a host beside a folder.
func local(ctx context.Context, env *measure.Env) (results []measure.Result, err error) {
	root, err := rootfs.Store{Dir: filepath.Join(env.Dir, "root")}.Unpack(ctx,
		filepath.Join(env.Root, "dist", "payload", "images", "machine"))
	if err != nil {
		return nil, err
	}
	plain := filepath.Join(env.Dir, "folder")
	if err := os.Mkdir(plain, 0o700); err != nil {
		return nil, err
	}
	volume := diskimage.Image{File: filepath.Join(env.Dir, "volume.img"), Mount: filepath.Join(env.Dir, "volume")}
	if err := volume.Ensure(ctx, 4<<30, root); err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, hostmount.Unmount(volume.Mount), diskimage.AwaitFree(context.WithoutCancel(ctx), volume.File))
	}()
	for _, c := range cases {
		env.Logf("storage: %s", c.name)
		var contenders []measure.Contender
		for name, dir := range map[string]string{"ours": volume.Mount, folder: plain} {
			contenders = append(contenders, measure.Contender{Name: name, Measure: func(ctx context.Context) (measure.Sample, error) {
				return fio(ctx, place{dir: dir}, "1G", seconds, c.args, c.unit)
			}})
		}
		stats, err := measure.Alternate(ctx, env.Rounds(rounds), contenders...)
		if err != nil {
			return results, fmt.Errorf("%s: %w", c.name, err)
		}
		results = append(results, measure.Result{Name: "storage/" + c.name, Unit: c.unit, Better: measure.Higher,
			Ours: stats["ours"]["rate"], Peer: folder, PeerStat: stats[folder]["rate"], Goal: measure.Goal{Ratio: goal}})
	}
	return results, nil
}

// place is a folder in which something is measured.
type place struct {
	dir   string
	enter []string // before each command, for who may

	volume string
	bricks []gluster.Brick
}

func (p place) command(ctx context.Context, args ...string) *exec.Cmd {
	args = append(slices.Clone(p.enter), args...)
	return exec.CommandContext(ctx, args[0], args[1:]...)
}

// fio does one of the cases in a folder, on a file of this size that is there from the first time on.
func fio(ctx context.Context, p place, size string, seconds int, args []string, unit string) (measure.Sample, error) {
	cmd := p.command(ctx, append([]string{"fio", "--name=bench", "--filename=" + filepath.Join(p.dir, "file"), "--size=" + size,
		"--ioengine=libaio", "--direct=1", "--time_based", fmt.Sprintf("--runtime=%d", seconds), "--ramp_time=1",
		"--output-format=json"}, args...)...)
	var out, trouble bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &trouble
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("fio: %w: %s", err, trouble.Bytes())
	}
	type side struct {
		Bytes float64 `json:"bw_bytes"`
		IOPS  float64 `json:"iops"`
	}
	var said struct {
		Jobs []struct{ Read, Write side }
	}
	if err := json.Unmarshal(out.Bytes(), &said); err != nil || len(said.Jobs) != 1 {
		return nil, fmt.Errorf("what fio says is not understood: %w: %s", err, out.Bytes())
	}
	read, write := said.Jobs[0].Read, said.Jobs[0].Write
	if unit == "IOPS" {
		return measure.Sample{"rate": read.IOPS + write.IOPS}, nil
	}
	return measure.Sample{"rate": (read.Bytes + write.Bytes) / 1e6}, nil
}
