package attack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/multipaas/multipaas/testing/dctest"
)

// mark is in the name of everything that an image tries to write where it must not.
const mark = "mpmark"

// secret is a file of A's machine that no container may see: the key by which its
// kubelet speaks to the plane.
const secret = "/etc/multipaas/pki/kubelet-client.key"

// imagePatience is for a pull of 5 MB and a start; alone it takes a second.
const imagePatience = 2 * time.Minute

// up leads out of any root file system, if anything does.
const up = "../../../../../../../../../../../.."

// badImage is an image that wants out of its root file system.
type badImage struct {
	name, what string
	layers     [][]tar.Header // on the tool's; content is the mark
	config     func(*v1.Config)
	// read is what the container then opens; it must not be able to. Empty: the
	// attempt is what unpacking and starting do.
	read []string
}

func file(name string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(mark))}
}

func symlink(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}
}

func hardlink(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to, Mode: 0o644}
}

func node(name string, kind byte, major, minor int64) tar.Header {
	return tar.Header{Name: name, Typeflag: kind, Devmajor: major, Devminor: minor, Mode: 0o666}
}

func dir(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }

var badImages = []badImage{
	{name: "devices", what: "device nodes: memory, ports, loop devices, disks, messages of the kernel", layers: [][]tar.Header{{
		node("mem", tar.TypeChar, 1, 1), node("port", tar.TypeChar, 1, 4), node("kmsg", tar.TypeChar, 1, 11), node("loop0", tar.TypeBlock, 7, 0),
		node("loop-control", tar.TypeChar, 10, 237), node("sda", tar.TypeBlock, 8, 0), node("vda", tar.TypeBlock, 253, 0), node("vdb", tar.TypeBlock, 254, 0),
		node("vda259", tar.TypeBlock, 259, 0), node("fuse", tar.TypeChar, 10, 229), node("kvm", tar.TypeChar, 10, 232)}},
		read: []string{"/mem", "/port", "/kmsg", "/loop0", "/loop-control", "/sda", "/vda", "/vdb", "/vda259", "/fuse", "/kvm"}},
	{name: "dotdot", what: "names that begin with ..", layers: [][]tar.Header{{file(up + "/" + mark + "-a"), file(up + "/etc/" + mark + "-a"), file("a/" + up + "/tmp/" + mark + "-a"), dir(up + "/" + mark + "-dir")}}},
	{name: "absolute", what: "absolute names", layers: [][]tar.Header{{file("/etc/multipaas/" + mark + "-b"), file("//var/lib/kubelet/" + mark + "-b")}}},
	{name: "through", what: "a file through a link of the layer below", layers: [][]tar.Header{
		{symlink("out", up), symlink("etc2", up+"/etc"), symlink("abs", "/var/lib/kubelet")},
		{file("out/" + mark + "-c"), file("etc2/" + mark + "-c"), file("abs/" + mark + "-c")}}},
	{name: "through1", what: "a file through a link of the same layer", layers: [][]tar.Header{
		{symlink("out", up+"/var/lib/kubelet"), file("out/" + mark + "-d"), symlink("deep", "out"), file("deep/" + mark + "-d2")}}},
	{name: "hard", what: "hard links to files of the machine", layers: [][]tar.Header{{symlink("etc2", up+"/etc"), hardlink("key", "etc2/multipaas/pki/kubelet-client.key")}}, read: []string{"/key"}},
	{name: "hard2", what: "hard links to names with ..", layers: [][]tar.Header{{hardlink("key", up+secret)}}, read: []string{"/key"}},
	{name: "soft", what: "links to files of the machine", layers: [][]tar.Header{{symlink("key", up+secret), symlink("key2", secret), symlink("key3", "/proc/1/root"+secret)}}, read: []string{"/key", "/key2", "/key3"}},
	{name: "whiteout", what: "whiteouts of what is outside", layers: [][]tar.Header{
		{symlink("out", up+"/var/lib"), dir("a")},
		{file(up + "/etc/.wh.multipaas"), file("out/.wh.kubelet"), file("a/.wh..."), file(".wh.."), file("out/.wh..wh..opq")}}},
	{name: "mounts", what: "links where the runtime mounts", layers: [][]tar.Header{
		{symlink("proc", up+"/etc"), symlink("sys", up+"/var/lib"), symlink("dev", up+"/run"), dir("etc"), symlink("etc/resolv.conf", up+secret), symlink("etc/hosts", secret), symlink("etc/hostname", up+"/etc/hostname")}},
		read: []string{"/proc/multipaas/pki/kubelet-client.key", "/dev/containerd/containerd.sock"}},
	{name: "passwd", what: "a link for the file of users", layers: [][]tar.Header{{dir("etc"), symlink("etc/passwd", up+secret), symlink("etc/group", up+secret)}},
		config: func(c *v1.Config) { c.User = "nobody" }},
	{name: "volumes", what: "volumes and a folder to work in, by ..", config: func(c *v1.Config) {
		c.Volumes = map[string]struct{}{"/" + up + "/etc/" + mark + "-v": {}}
		c.WorkingDir = "/" + up + "/tmp/" + mark + "-w"
	}},
	{name: "fdwork", what: "a folder to work in that is one of the runtime's own open files", config: func(c *v1.Config) { c.WorkingDir = "/proc/self/fd/7" },
		read: []string{"../../../../../../.." + secret, "../../../../../.." + secret}},
}

// testImages makes images whose layers reach out of themselves, pushes them as A and
// runs them on A's machine. Machines are where images are unpacked, by the machine's
// own root: what gets out there reaches A's machine first.
func testImages(t *testing.T, s *suite) {
	k := newKube(t, s.box)
	k.must(t, "/api/v1/namespaces", `{"metadata":{"name":"images"}}`)
	s.Login(t, "auth-beta", "owner@beta.example", filepath.Join(s.Dir, "password"))
	w := &waste{suite: s, kube: k, id: s.workspaceID(t, dctest.Rival, "box")}
	w.findMachine(t)
	before := w.listing(t)

	// The control: an image of the same making runs, and reads what it has.
	plain := badImage{name: "plain", what: "a file", layers: [][]tar.Header{{file("own")}}, read: []string{"/own"}}
	w.push(t, plain)
	o, got := w.runImage(t, plain)
	err := errors.New(o)
	if strings.HasPrefix(got["/own"], "open") {
		err = nil
	}
	if !s.control(t, "an image made the same way is pushed, pulled and run", err) {
		return
	}
	type result struct {
		outcome string
		got     map[string]string
	}
	results := make([]result, len(badImages))
	var wg sync.WaitGroup
	places := make(chan struct{}, 4) // as many as kubelet pulls at once
	for i, b := range badImages {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			w.push(t, b)
			results[i].outcome, results[i].got = w.runImage(t, b)
		})
	}
	wg.Wait()
	after := w.listing(t)
	var changed []string
	for name, was := range before {
		if now, ok := after[name]; !ok || now != was {
			changed = append(changed, name+" was "+was+" and is "+after[name])
		}
	}
	for name := range after {
		if strings.Contains(name, mark) {
			changed = append(changed, name)
		}
	}
	changed = append(changed, w.marks(t)...)
	for i, b := range badImages {
		r := results[i]
		if r.outcome == "" {
			t.Errorf("image with %s: neither run nor refused in %s; it isn't counted", b.what, imagePatience)
			continue
		}
		for _, path := range b.read {
			outcome, ran := r.got[path]
			blocked := shut(outcome)
			if !ran {
				outcome, blocked = "the image was refused: "+r.outcome, refusedImage(r.outcome)
			}
			s.record(t, attempt{What: "image with " + b.what + ": open " + path, From: podOfA, Want: "refused, or nothing of the machine",
				Got: outcome, Blocked: blocked})
		}
		s.record(t, attempt{What: "image with " + b.what + ": change the machine", From: podOfA, Want: "no file of the machine changes",
			Got: r.outcome + " " + strings.Join(changed, "; "), Blocked: len(changed) == 0 && !strings.Contains(r.outcome, "PRIVATE KEY")})
	}
}

// refusedImage says whether an outcome is that of an image that was not unpacked,
// or whose container was not made.
func refusedImage(outcome string) bool {
	for _, who := range []string{"StartError ", "ErrImagePull: ", "ImagePullBackOff: ", "CreateContainerError: "} {
		if strings.HasPrefix(outcome, who) {
			return true
		}
	}
	return false
}

// push makes the image and pushes it to beta/ops.
func (w *waste) push(t *testing.T, b badImage) {
	t.Helper()
	image := w.tool
	for _, headers := range b.layers {
		var archive bytes.Buffer
		a := tar.NewWriter(&archive)
		for _, h := range headers {
			err := a.WriteHeader(&h)
			if err == nil && h.Size > 0 {
				_, err = a.Write([]byte(mark))
			}
			if err != nil {
				t.Fatalf("%s: %s: %v", b.name, h.Name, err)
			}
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		image = w.withLayer(t, image, archive.Bytes())
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.Config.User = "0:0"
	if b.config != nil {
		b.config(&config.Config)
	}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	w.pushImage(t, "evil-"+b.name, image)
}

func (w *waste) withLayer(t *testing.T, image v1.Image, archive []byte) v1.Image {
	t.Helper()
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err == nil {
		_, err = z.Write(archive)
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed.Bytes())), nil }, tarball.WithMediaType(types.OCILayer))
	if err == nil {
		image, err = mutate.AppendLayers(image, layer)
	}
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func (w *waste) pushImage(t *testing.T, name string, image v1.Image) {
	t.Helper()
	oci := filepath.Join(w.Dir, "images", name)
	if err := dctest.WriteLayout(oci, name, image); err != nil {
		t.Fatal(err)
	}
	if r := w.Skopeo(t, "auth-beta", "copy", "oci:"+oci+":"+name, "docker://"+w.Image("beta/ops", name)); r.Code != 0 {
		t.Fatal(r)
	}
}

// runImage runs the image until it has opened what it shall, or was refused. The
// outcome is what Kubernetes says of it; "" if neither has happened.
func (w *waste) runImage(t *testing.T, b badImage) (outcome string, opened map[string]string) {
	const pods = "/api/v1/namespaces/images/pods"
	name := "evil-" + b.name
	args, err := json.Marshal(append([]string{"open"}, b.read...))
	if err != nil {
		t.Error(err)
		return "", nil
	}
	w.kube.must(t, pods, fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"terminationGracePeriodSeconds":0,"restartPolicy":"Never","nodeName":%q,
		"containers":[{"name":"c","image":%q,"args":%s}]}}`, name, w.attacker.node, w.Image("beta/ops", name), args))
	ctx, cancel := context.WithTimeout(t.Context(), imagePatience)
	defer cancel()
	for ; ctx.Err() == nil; time.Sleep(300 * time.Millisecond) {
		var pod struct {
			Status struct {
				Phase             string
				ContainerStatuses []struct {
					State struct {
						Waiting    *struct{ Reason, Message string }
						Terminated *struct{ Reason, Message string }
					}
				}
			}
		}
		r := w.kube.do(ctx, http.MethodGet, pods+"/"+name, "", "")
		if r.good() != nil || json.Unmarshal([]byte(r.body), &pod) != nil || len(pod.Status.ContainerStatuses) == 0 {
			continue
		}
		state := pod.Status.ContainerStatuses[0].State
		if x := state.Waiting; x != nil && x.Message != "" {
			// Other troubles of a pull pass, and say nothing about the image.
			pull := x.Reason == "ErrImagePull" || x.Reason == "ImagePullBackOff"
			if x.Reason != "ContainerCreating" && !passes(x.Message) && (!pull || strings.Contains(x.Message, "failed to extract layer")) {
				return x.Reason + ": " + x.Message, nil
			}
		}
		if x := state.Terminated; x != nil {
			outcome = strings.TrimSpace(x.Reason + " " + x.Message)
			opened = map[string]string{}
			if refusedImage(outcome) {
				return outcome, opened
			}
			log := w.kube.do(ctx, http.MethodGet, pods+"/"+name+"/log", "", "")
			if log.good() != nil {
				continue
			}
			for line := range strings.Lines(log.body) {
				path, got, _ := strings.Cut(strings.TrimSpace(line), " ")
				opened[path] = got
			}
			return outcome, opened
		}
	}
	return "", nil
}

// listing is every file of A's machine that no image may change: its own root file
// system, what it is told by the host, and the folders of containerd and kubelet
// themselves, each with what is seen of it from outside.
func (w *waste) listing(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, from := range []string{"config", "disk/upper", "disk/kubelet/pki"} {
		root := w.ofMachine(from)
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return nil // it went meanwhile
			}
			info, err := d.Info()
			// Folders get a new time by each file in them, and what runs is the
			// machine's own: of each pod's network, too, there is a file, which goes
			// a while after the pod.
			if err != nil || d.IsDir() || containsAny(path, []string{"/upper/run/", "/upper/tmp/", "/upper/var/lib/cni/results/"}) {
				return nil
			}
			all[from+strings.TrimPrefix(path, root)] = fmt.Sprint(info.Mode(), info.Size(), info.ModTime().UnixNano())
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(all) == 0 {
		t.Fatalf("%s holds nothing", w.ofMachine(""))
	}
	return all
}

// marks are files on the host of A's machine that carry the mark, but for those in
// containers' own file systems and logs.
func (w *waste) marks(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, root := range []string{"etc", "opt", "root", "run", "srv", "tmp", "usr/local", "var/lib/multipaas/machines/" + w.uid()} {
		_ = filepath.WalkDir(w.machine.host.Root(root), func(path string, d os.DirEntry, err error) error {
			switch {
			case err != nil:
			case d.IsDir() && (strings.Contains(path, "/disk/containerd/io.containerd.snapshotter") || strings.HasSuffix(path, "/rootfs")):
				return filepath.SkipDir
			case strings.Contains(d.Name(), mark):
				found = append(found, path)
			}
			return nil
		})
	}
	slices.Sort(found)
	return slices.Compact(found)
}
