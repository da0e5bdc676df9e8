package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/rootfs"
)

// What Health says of a disk of which nothing bad is known, and of one of which nothing is.
const (
	Well    = "ok"
	Unknown = "unknown"
)

// smartTime bounds one question: a disk that fails may try to read the same for minutes.
const smartTime = time.Minute

// Below are the disks, without their partitions, that hold what is at a path: one, or those of a RAID. None, if the file
// system is on no disk of its own, as one of memory or of the network.
func Below(path string) (disks []Device, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	sys, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return below(sys)
}

func below(sys string) (disks []Device, err error) {
	if attribute(sys, "partition") != "" {
		sys = filepath.Dir(sys)
	}
	slaves, err := filepath.Glob(filepath.Join(sys, "slaves", "*"))
	if err != nil {
		return nil, err
	}
	if len(slaves) == 0 {
		d, err := open(sys)
		return []Device{d}, err
	}
	for _, s := range slaves {
		real, err := filepath.EvalSymlinks(s)
		if err != nil {
			return nil, err
		}
		more, err := below(real)
		if err != nil {
			return nil, err
		}
		for _, d := range more {
			if !slices.Contains(disks, d) {
				disks = append(disks, d)
			}
		}
	}
	return disks, nil
}

// Disks are the device itself, a partition's disk, or those of a RAID.
func (d Device) Disks() ([]Device, error) { return below(d.sys) }

// Health is Well, Unknown, or what is wrong with a disk: what the kernel says of it, and what it says of itself (SMART), if
// it can. tools is the root file system of a Debian with smartctl, asked for only for a disk that may say something. One that
// sleeps is not woken. It blocks for smartTime and what tools takes at most, unless the kernel does.
func (d Device) Health(ctx context.Context, tools func(context.Context) (root string, err error)) string {
	switch state := attribute(d.sys, "device/state"); {
	case state != "" && state != "running" && state != "live":
		return "the kernel says that it is " + state
	case d.ReadOnly:
		return "it can't be written to"
	}
	// What is no SCSI (SATA's are too) or NVMe, as virtio's and loop devices, knows nothing of this.
	bus, err := filepath.EvalSymlinks(filepath.Join(d.sys, "device", "subsystem"))
	if name := filepath.Base(bus); err != nil || name != "scsi" && !strings.HasPrefix(name, "nvme") {
		return Unknown
	}
	root, err := tools(ctx)
	if err != nil {
		return Unknown
	}
	ctx, cancel := context.WithTimeout(ctx, smartTime)
	defer cancel()
	// Its exit status is a set of bits, most of which say something of the disk: what it has written is what counts.
	out, _ := rootfs.Output(ctx, root, nil, "usr/sbin/smartctl",
		"--json=c", "--health", "--attributes", "--nocheck=standby", d.Name)
	return judge(out)
}

// smart is what of smartctl's JSON is read here (smartctl(8), --json).
type smart struct {
	Status *struct {
		Passed bool `json:"passed"`
	} `json:"smart_status"`
	// NVM Express Base Specification 2.0, 5.16.1.3, SMART / Health Information.
	NVMe *struct {
		Warning     int `json:"critical_warning"`
		UsedPercent int `json:"percentage_used"`
		MediaErrors int `json:"media_errors"`
	} `json:"nvme_smart_health_information_log"`
	ATA struct {
		Table []struct {
			ID  int `json:"id"`
			Raw struct {
				Value int64 `json:"value"`
			} `json:"raw"`
		} `json:"table"`
	} `json:"ata_smart_attributes"`
	// SCSI's list of sectors that went bad after it was made.
	Grown int `json:"scsi_grown_defect_list"`
}

// nvmeWarnings are the bits of NVMe's critical warning.
var nvmeWarnings = []string{"its spare blocks run out", "it is too hot or too cold", "it is not reliable any more",
	"it can only be read", "its memory's battery failed", "its persistent memory can only be read"}

// judge says what smartctl's answer means.
func judge(answer []byte) string {
	var s smart
	if json.Unmarshal(answer, &s) != nil || s.Status == nil {
		return Unknown
	}
	var bad []string
	if n := s.NVMe; n != nil {
		for bit, text := range nvmeWarnings {
			if n.Warning&(1<<bit) != 0 {
				bad = append(bad, text)
			}
		}
		if n.UsedPercent >= 100 {
			bad = append(bad, fmt.Sprintf("it has been written to %d %% of what it was made for", n.UsedPercent))
		}
		if n.MediaErrors > 0 {
			bad = append(bad, fmt.Sprintf("%d times it could not give what was written to it", n.MediaErrors))
		}
	}
	for _, a := range s.ATA.Table {
		// The number of each of these is of sectors, with all makers: Pinheiro et al., "Failure Trends in a Large Disk Drive
		// Population" (FAST '07) and later studies found that disks with any fail far more often.
		switch {
		case a.Raw.Value == 0:
		case a.ID == 197:
			bad = append(bad, fmt.Sprintf("it can't read %d sectors now", a.Raw.Value&0xffffffff))
		case a.ID == 198:
			bad = append(bad, fmt.Sprintf("it could not read %d sectors in a test of its own", a.Raw.Value&0xffffffff))
		}
	}
	if s.Grown > 0 {
		bad = append(bad, fmt.Sprintf("%d sectors went bad", s.Grown))
	}
	if !s.Status.Passed && len(bad) == 0 {
		bad = append(bad, "it says that it fails soon")
	}
	if len(bad) == 0 {
		return Well
	}
	return strings.Join(bad, "; ") + " (SMART)"
}
