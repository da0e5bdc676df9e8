package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// sharedWorld is what of shared volumes a host has; appliance's TestShared has the real one.
type sharedWorld struct {
	SharedHost
	served, any bool
	bricks      []wire.VolumeReport
	away        error
	did         []string
}

func (w *sharedWorld) Left() (served, any bool, err error)         { return w.served, w.any, nil }
func (w *sharedWorld) Old() bool                                   { return true }
func (w *sharedWorld) Server() string                              { return "then" }
func (w *sharedWorld) Mounted() ([]SharedMount, error)             { return []SharedMount{{"other", "m"}}, nil }
func (w *sharedWorld) Bricks() ([]wire.VolumeReport, error)        { return w.bricks, w.away }
func (*sharedWorld) EnsureBrick(context.Context, wire.Brick) error { return nil }
func (*sharedWorld) RemoveBrick(context.Context, wire.Brick) error { return nil }
func (w *sharedWorld) Forget(context.Context) error {
	w.did, w.served = append(w.did, "forget"), false
	return nil
}
func (w *sharedWorld) Clear(context.Context) error {
	w.did, w.any = append(w.did, "clear"), false
	return nil
}

// TestSharedAbsence: what serves bricks ends only once no brick is there, and is forgotten before
// all is cleared; bricks and volumes of the cluster are never dropped, mounts are.
func TestSharedAbsence(t *testing.T) {
	w := &sharedWorld{served: true, any: true, bricks: []wire.VolumeReport{{UID: "b1", NetworkID: "00002a"}}}
	drivers := append(Shared(SharedConfig{Host: w, Bricks: w}), Mounts(w))
	list := func() (all []string) {
		for _, d := range drivers {
			keys, err := d.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range keys {
				all = append(all, Ref{d.Kind(), k}.String())
			}
		}
		return all
	}
	want := func(want ...string) {
		t.Helper()
		if got := list(); !slices.Equal(got, want) {
			t.Errorf("may be dropped: %v, want %v", got, want)
		}
	}
	want("mount other/m")
	w.bricks, w.away = nil, errors.New("the disk is away")
	want("mount other/m")
	w.away = nil
	want("storage server", "storage identity", "mount other/m")
	if err := drivers[0].Drop(t.Context(), identityKey); err == nil {
		t.Error("it is cleared while bricks are served")
	}
	for _, key := range []string{serverKey, identityKey} {
		if err := drivers[0].Drop(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	want("mount other/m")
	if fmt.Sprint(w.did) != "[forget clear]" {
		t.Errorf("it did %v", w.did)
	}
}

// TestSharedWanted: what of shared volumes a state wants, and what waits for what.
func TestSharedWanted(t *testing.T) {
	w := &sharedWorld{bricks: []wire.VolumeReport{{UID: "b1", NetworkID: "00002a", Ready: true, SizeBytes: 8}, {UID: "b9", NetworkID: "00002b"}}}
	drivers := append(Shared(SharedConfig{Host: w, Bricks: w}), Mounts(w), Volumes(nil), Attachments(nil))
	volume := wire.Volume{Key: "a/b/c/d", UID: "V1", NetworkID: "00002a", Class: resource.SharedVolume, Attachments: []wire.VolumeAttachment{{MachineUID: "m"}}}
	states := map[string]*wire.State{
		"": {},
		"storage identity, mount v1/m after storage identity machine m, attachment V1/m after mount v1/m machine m": {Volumes: []wire.Volume{volume}},
		"storage identity, mount v1/import after storage identity": {Volumes: []wire.Volume{
			{UID: "V1", Class: resource.SharedVolume, Importing: true, Brick: "b1"}}},
		"storage identity, storage server after storage identity, brick b1 after storage identity": {
			Storage: &wire.Storage{Bricks: []wire.Brick{{UID: "b1", SizeBytes: 8}}}},
		"storage identity, storage server after storage identity, cluster members after storage server, cluster V1 after storage server": {
			Storage: &wire.Storage{Cluster: &wire.Cluster{Volumes: []wire.ClusterVolume{{UID: "V1"}}}}},
		"storage identity, storage server after storage identity, cluster members after storage server, cluster V1 after storage server, heal V1 after storage server": {
			Storage: &wire.Storage{Cluster: &wire.Cluster{Volumes: []wire.ClusterVolume{{UID: "V1", Bricks: make([]wire.ClusterBrick, 3)}}}}},
	}
	for want, s := range states {
		got := ""
		for ref, item := range inOrder(drivers, s) {
			got += ", " + ref.String()
			for i, need := range item.Needs {
				if i == 0 {
					got += " after"
				}
				got += " " + need.String()
			}
		}
		if got = got[min(len(got), 2):]; got != want {
			t.Errorf("a state wants %s\nwant %s", got, want)
		}
	}
	r := Report{Items: map[Ref]any{}}
	r.Holds = []string{}
	s := &wire.State{Volumes: []wire.Volume{volume}, Storage: &wire.Storage{Bricks: []wire.Brick{{UID: "b1", NetworkID: "00002a", SizeBytes: 16}, {UID: "b2", NetworkID: "00002c"}}}}
	for _, d := range drivers[:5] {
		fallen, err := d.Report(t.Context(), s, func(string) Progress { return Progress{serial: 1} }, &r)
		if err != nil || d.Kind() == wire.BrickItem != slices.Equal(fallen, []string{"b2"}) {
			t.Errorf("%s: fallen are %v, %v", d.Kind(), fallen, err)
		}
	}
	if slices.Sort(r.Holds); fmt.Sprint(r.Holds) != "[00002a 00002b 00002c ?]" || !r.StorageOld {
		t.Errorf("it holds %v, old %v", r.Holds, r.StorageOld)
	}
	if b := r.Items[Ref{wire.BrickItem, "b1"}].(*wire.BrickReport); b.Ready || b.SizeBytes != 8 || b.Server != "then" {
		t.Errorf("a brick that has to grow is %+v", b)
	}
	if v := r.Items[Ref{wire.VolumeItem, "V1"}].(*wire.VolumeReport); !v.Ready || v.Key != volume.Key {
		t.Errorf("its mount is %+v", v)
	}

	// One that this host writes a file into says how far it is, or that it isn't mounted.
	importing := wire.Volume{UID: "V2", Class: resource.SharedVolume, Importing: true, Brick: "b1"}
	for _, is := range []struct{ state, problem, want, says string }{
		{wire.ImportBegun, "", wire.ImportBegun, "of its file"}, {wire.ImportBegun, "no route", "", "no route"},
		{wire.ImportBegun, errImports.Error(), wire.ImportBegun, errImports.Error()},
		{wire.ImportDone, "no route", wire.ImportDone, "of its file"}, {wire.ImportBroken, "no route", wire.ImportBroken, "of its file"},
	} {
		r := Report{Items: map[Ref]any{}}
		for _, d := range []Driver{Mounts(w), Attachments(importHost{state: is.state})} {
			if _, err := d.Report(t.Context(), &wire.State{Volumes: []wire.Volume{importing}},
				func(string) Progress { return Progress{Problem: is.problem} }, &r); err != nil {
				t.Fatal(err)
			}
		}
		if v := r.Items[Ref{wire.VolumeItem, "V2"}].(*wire.VolumeReport); v.Import != is.want || v.Message != is.says {
			t.Errorf("%+v: it says %+v", is, v)
		}
	}
}

type importHost struct {
	VolumeHost
	state string
}

func (h importHost) Imported(wire.Volume) (state, message string)        { return h.state, "of its file" }
func (importHost) Attached() (map[string][]wire.VolumeAttachment, error) { return nil, nil }

// TestMountsBounded: no more clients run on a host than it has memory for, and those of what is mounted go first.
func TestMountsBounded(t *testing.T) {
	s := &wire.State{}
	for i := range 6 { // workspaces: 5 with 200 mounts, and one with 300
		for j := range 100 {
			v := wire.Volume{UID: fmt.Sprintf("v%d%02d", i, j), NetworkID: fmt.Sprint(i), Class: resource.SharedVolume}
			for m := range 2 + i/5 {
				v.Attachments = append(v.Attachments, wire.VolumeAttachment{MachineUID: fmt.Sprint("m", m)})
			}
			s.Volumes = append(s.Volumes, v)
		}
	}
	refused := func(mounted ...SharedMount) (all []string) {
		for _, item := range Mounts(&boundedHost{mounted: mounted}).Wanted(s) {
			if err := item.Ensure(t.Context()); err != nil {
				all = append(all, item.Key)
			}
		}
		return all
	}
	if all := refused(); len(all) != 300 || all[0] != wire.GlusterName("v500")+"/m0" {
		t.Errorf("%d mounts are refused", len(all))
	}
	late := SharedMount{wire.GlusterName("v599"), "m2"}
	if all := refused(late); len(all) != 300 || slices.Contains(all, late.key()) || all[0] != wire.GlusterName("v499")+"/m1" {
		t.Errorf("%d mounts are refused beside one that is there: %v", len(all), all[0])
	}
	s.Volumes = s.Volumes[500:]
	if all := refused(); len(all) != 50 || all[0] != wire.GlusterName("v583")+"/m1" {
		t.Errorf("%d mounts of one workspace are refused", len(all))
	}
	if err := Mounts(&boundedHost{}).Wanted(s)[299].Ensure(t.Context()); !strings.Contains(fmt.Sprint(err), "mounted 250 times") {
		t.Errorf("it says %v", err)
	}
}

// TestImportMountsBounded: volumes that files are written into, be it that nobody sends, take nothing from machines.
func TestImportMountsBounded(t *testing.T) {
	s := &wire.State{}
	for i := range 40 {
		s.Volumes = append(s.Volumes, wire.Volume{UID: fmt.Sprintf("i%02d", i), NetworkID: fmt.Sprint(i / 4), Class: resource.SharedVolume, Importing: true})
	}
	mounts := func() (imports []string) {
		items := Mounts(&boundedHost{mounted: []SharedMount{{wire.GlusterName("i03"), wire.ImportMount}}}).Wanted(s)
		for i, item := range items {
			err := item.Ensure(t.Context())
			switch {
			case i < len(items)-40 && err != nil:
				t.Errorf("%s of a machine is refused: %v", item.Key, err)
			case i >= len(items)-40 && err == nil:
				imports = append(imports, item.Key)
			}
		}
		return imports
	}
	if got := mounts(); len(got) != resource.MaxImportsOnHost || got[0] != wire.GlusterName("i03")+"/import" || got[1] != wire.GlusterName("i00")+"/import" ||
		got[2] != wire.GlusterName("i04")+"/import" {
		t.Errorf("mounted are %v", got)
	}
	for i := range resource.MaxMountsOnHost {
		s.Volumes = append(s.Volumes, wire.Volume{UID: fmt.Sprintf("v%04d", i), NetworkID: fmt.Sprint(100 + i/100), Class: resource.SharedVolume,
			Attachments: []wire.VolumeAttachment{{MachineUID: "m"}}})
	}
	if got := mounts(); len(got) != 0 {
		t.Errorf("beside all that machines can have there are %v", got)
	}
}

type boundedHost struct {
	SharedHost
	mounted []SharedMount
}

func (h *boundedHost) Mounted() ([]SharedMount, error)                { return h.mounted, nil }
func (*boundedHost) Mount(context.Context, wire.Volume, string) error { return nil }

// inOrder are the items that a state wants of drivers.
func inOrder(drivers []Driver, s *wire.State) func(func(Ref, Item) bool) {
	return func(yield func(Ref, Item) bool) {
		for _, d := range drivers {
			for _, item := range d.Wanted(s) {
				if !yield(Ref{d.Kind(), item.Key}, item) {
					return
				}
			}
		}
	}
}
