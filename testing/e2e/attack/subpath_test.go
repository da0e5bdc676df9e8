package attack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/wait"
)

// keyBehind are the names by which the machine's key is found behind a mount of
// one of its folders at /m.
var keyBehind = []string{"/m", "/m/kubelet-client.key", "/m/pki/kubelet-client.key", "/m/multipaas/pki/kubelet-client.key", "/m" + secret, "/m/root" + secret}

const volumeOfOwn = `"volumes":[{"name":"v","emptyDir":{}}]`

// mount is the volume v at /m, with more.
func mount(more string) string {
	if more != "" {
		more = "," + more
	}
	return `"volumeMounts":[{"name":"v","mountPath":"/m"` + more + `}]`
}

// testPaths asks for volumes by paths that lead out of them: by words, which the
// API refuses, and by what is there when kubelet looks, which it has to refuse.
func testPaths(t *testing.T, s *suite) {
	k := newKube(t, s.box)
	k.must(t, "/api/v1/namespaces", `{"metadata":{"name":"paths"}}`)
	k.must(t, "/api/v1/namespaces/paths/configmaps", `{"metadata":{"name":"paths"},"data":{"a":"a"}}`)
	k.must(t, "/api/v1/namespaces/paths/secrets", `{"metadata":{"name":"paths"},"data":{"a":"YQ=="}}`)
	s.badWords(t, k)
	s.badLinks(t, k)
	s.imageVolumes(t, k)
	s.swaps(t, k)
}

func (s *suite) badWords(t *testing.T, k *kube) {
	const pods = "/api/v1/namespaces/paths/pods?dryRun=All"
	good := func(spec, container string) reply {
		return k.post(t.Context(), pods, podJSON(`"name":"good"`, spec, container))
	}
	var err error
	wait.For(t, wait.Patience, "the namespace takes pods", func(context.Context) error { return good("", "").good() })
	for _, p := range [][2]string{{volumeOfOwn, mount(`"subPath":"a/b"`)}, {volumeOfOwn, `"env":[{"name":"A","value":"a"}],` + mount(`"subPathExpr":"$(A)"`)},
		{`"volumes":[{"name":"v","configMap":{"name":"paths","items":[{"key":"a","path":"b/a"}]}}]`, mount("")},
		{`"volumes":[{"name":"v","projected":{"sources":[{"secret":{"name":"paths","items":[{"key":"a","path":"a"}]}},{"serviceAccountToken":{"path":"t"}}]}}]`, mount("")}} {
		err = errors.Join(err, good(p[0], p[1]).good())
	}
	if !s.control(t, "pods with paths within their volumes are taken", err) {
		return
	}
	refusedBy := func(what string, r reply, words string) {
		s.record(t, attempt{What: what, From: owner, Want: "422: " + words, Got: r.String(), Blocked: r.code == http.StatusUnprocessableEntity && strings.Contains(r.body, words)})
	}
	bad := rows[badPaths](t, "paths.yaml")
	for _, what := range slices.Sorted(maps.Keys(bad.Pods)) {
		spec, container := bad.Pods[what].pod()
		r := k.post(t.Context(), pods, podJSON(`"name":"bad"`, spec, container))
		refusedBy("create a pod with a path that leads out: "+what, r, bad.Pods[what].Words)
	}
	for _, key := range bad.Keys {
		for kind, value := range map[string]string{"configmaps": "a", "secrets": "YQ=="} {
			r := k.post(t.Context(), "/api/v1/namespaces/paths/"+kind+"?dryRun=All", `{"metadata":{"name":"keys"},"data":{"`+key+`":"`+value+`"}}`)
			refusedBy(fmt.Sprintf("write a key that is a path into %s: %q", kind, key), r, `"data[`)
		}
		r := k.post(t.Context(), "/api/v1/namespaces/paths/configmaps?dryRun=All", `{"metadata":{"name":"keys"},"binaryData":{"`+key+`":"YQ=="}}`)
		refusedBy(fmt.Sprintf("write a binary key that is a path into configmaps: %q", key), r, `"binaryData[`)
	}
}

// badLinks makes links in a volume that lead out of it, and asks for what is behind
// them by subPath. Kubelet is the machine's root: were it to follow one, the pod
// would have that folder of the machine.
func (s *suite) badLinks(t *testing.T, k *kube) {
	// Each is a container; the volume is theirs all together.
	type part struct{ what, env, path string }
	const own, inner, expr = "own", "own-link", "own-expr"
	parts := map[string]part{
		own:     {what: "a folder", path: `"subPath":"real"`},
		inner:   {what: "a link within the volume", path: `"subPath":"inner"`},
		expr:    {what: "a folder by a variable", env: `{"name":"A","value":"real"}`, path: `"subPathExpr":"$(A)"`},
		"below": {what: "subPath below a link to /", path: `"subPath":"root/etc/multipaas/pki"`},
		"pki":   {what: "subPath below a link to /etc", path: `"subPath":"etc/multipaas"`},
		"twice": {what: "subPath of a link to a link to /etc", path: `"subPath":"again"`},
		"deep":  {what: "subPath below a link in a folder, up and out", path: `"subPath":"a/b/out/multipaas"`},
		"made":  {what: "subPath of a folder that is to be made behind a link", path: `"subPath":"run/` + mark + `"`},
		"link":  {what: "subPathExpr of a link to /etc", env: `{"name":"A","value":"etc"}`, path: `"subPathExpr":"$(A)"`},
		"two":   {what: "subPathExpr of two variables that make ..", env: `{"name":"A","value":"."},{"name":"B","value":"./."}`, path: `"subPathExpr":"$(A)$(B)$(A)/etc"`},
		"node": {what: "subPathExpr of the node's name and ..", env: `{"name":"A","valueFrom":{"fieldRef":{"fieldPath":"spec.nodeName"}}},{"name":"B","value":"$(A)/../../../../../etc"}`,
			path: `"subPathExpr":"$(B)"`},
	}
	for i, value := range []string{up + secret, "/etc/multipaas/pki", "a/../../../../../../../../../etc"} {
		parts[fmt.Sprintf("value-%d", i)] = part{what: "subPathExpr of a variable that says " + value, env: `{"name":"A","value":"` + value + `"}`, path: `"subPathExpr":"$(A)"`}
	}
	links := []string{"/v/real", "/v/inner=real", "/v/again=etc", "/v/a/b", "/v/a/b/out=../../../../../../../../etc"}
	for name, target := range map[string]string{"root": "/", "etc": "/etc", "keys": "/etc/multipaas/pki", "proc": "/proc/1/root", "self": "/proc/self/root", "cwd": "/proc/self/cwd", "kubelet": "/var/lib/kubelet",
		"run": "/run", "containerd": "/run/containerd", "up": "..", "upper": up, "slash": "//", "fd": "/proc/self/fd", "key": secret} {
		parts["to-"+name] = part{what: "subPath of a link to " + target, path: `"subPath":"` + name + `"`}
		links = append(links, "/v/"+name+"="+target)
	}
	image := s.Image("beta/ops", "tool")
	names := slices.Sorted(maps.Keys(parts))
	var containers []string
	for _, name := range names {
		containers = append(containers, fmt.Sprintf(`{"name":%q,"image":%q,"args":["open","/m/own","%s"],"env":[%s],"securityContext":{"runAsUser":0,"runAsGroup":0},%s}`,
			name, image, strings.Join(keyBehind, `","`), parts[name].env, mount(parts[name].path)))
	}
	spec := fmt.Sprintf(`%s,"initContainers":[{"name":"links","image":%q,"args":["link","%s"],"securityContext":{"runAsUser":0,"runAsGroup":0},"volumeMounts":[{"name":"v","mountPath":"/v"}]}],"containers":[%s]`,
		volumeOfOwn, image, strings.Join(links, `","`), strings.Join(containers, ","))
	all, r := s.lonePod(t, k, "paths", "links", spec, names...)
	for _, name := range []string{own, inner, expr} {
		var err error
		if c := all[name]; !slices.Contains(c.opened(), "/m/own") {
			err = fmt.Errorf("%s; %v", c, r)
		}
		if !s.control(t, "subPath of "+parts[name].what+" is mounted", err) {
			return
		}
	}
	for _, name := range names {
		c, ok := all[name]
		switch {
		case name == own || name == inner || name == expr:
		case !ok:
			s.control(t, "a container with "+parts[name].what+" is started or refused", errors.New("neither"))
		default:
			s.record(t, attempt{What: "mount of a volume by " + parts[name].what, From: "pod of A, by kubelet", Want: "kubelet refuses the path, and nothing of the machine is opened",
				Got: c.String(), Blocked: !c.ran && strings.Contains(strings.ToLower(c.words), "subpath")})
		}
	}
}

// imageVolumes mounts parts of an image whose links lead out of it. Containerd is
// the machine's root, too.
func (s *suite) imageVolumes(t *testing.T, k *kube) {
	s.Login(t, "auth-beta", "owner@beta.example", filepath.Join(s.Dir, "password"))
	w := &waste{suite: s, kube: k}
	paths := map[string]string{"root": "/", "etc": "/etc", "pki": "/etc/multipaas/pki", "proc": "/proc/1/root", "self": "/proc/self/root", "up": up, "key": secret, "run": "/run/containerd"}
	headers := []tar.Header{dir("folder"), file("folder/own"), symlink("inner", "folder"), symlink("twice", "etc")}
	subPaths := map[string]string{"a link to a link to /etc": "twice/multipaas", "a folder behind a link to /": "root/etc/multipaas/pki", "a folder that is to be made behind a link": "run/" + mark}
	for name, target := range paths {
		headers = append(headers, symlink(name, target))
		subPaths["a link to "+target] = name
	}
	const own, inner = "a folder", "a link within the image"
	subPaths[own], subPaths[inner] = "folder", "inner"
	w.push(t, badImage{name: "volume", layers: [][]tar.Header{headers}})
	whats := slices.Sorted(maps.Keys(subPaths))
	var containers, names []string
	for i, what := range whats {
		names = append(names, fmt.Sprintf("c-%d", i))
		containers = append(containers, fmt.Sprintf(`{"name":%q,"image":%q,"args":["open","/m/own","%s"],"securityContext":{"runAsUser":0,"runAsGroup":0},%s}`,
			names[i], s.Image("beta/ops", "tool"), strings.Join(keyBehind, `","`), mount(`"subPath":"`+subPaths[what]+`"`)))
	}
	all, r := s.lonePod(t, k, "paths", "image", fmt.Sprintf(`"volumes":[{"name":"v","image":{"reference":%q}}],"containers":[%s]`, s.Image("beta/ops", "evil-volume"), strings.Join(containers, ",")), names...)
	for i, what := range whats {
		if what != own && what != inner {
			continue
		}
		var err error
		if c := all[names[i]]; !slices.Contains(c.opened(), "/m/own") {
			err = fmt.Errorf("%s; %v", c, r)
		}
		if !s.control(t, what+" of an image is mounted", err) {
			return
		}
	}
	for i, what := range whats {
		c, ok := all[names[i]]
		switch {
		case what == own || what == inner:
		case !ok:
			s.control(t, "a container with an image's "+what+" is started or refused", errors.New("neither"))
		default:
			s.record(t, attempt{What: "mount of an image by " + what, From: "pod of A, by containerd", Want: "refused, or nothing of the machine is opened",
				Got: c.String(), Blocked: len(c.opened()) == 0 && (c.ran || strings.Contains(c.words, "failed to ensure image subpath"))})
		}
	}
}

// swaps starts containers with a subPath that is a folder at one moment and a link
// out of the volume at the next. Kubelet looks first, and mounts then.
func (s *suite) swaps(t *testing.T, k *kube) {
	const each = 12
	rounds := 1
	if long() {
		rounds = 20
	}
	image := s.Image("beta/ops", "tool")
	kinds := map[string]string{"last": "a", "below": "b/pki"} // subPath
	var containers, names []string
	for kind, path := range kinds {
		for i := range each {
			name := fmt.Sprintf("%s-%d", kind, i)
			names = append(names, name)
			containers = append(containers, fmt.Sprintf(`{"name":%q,"image":%q,"args":["open","/m/own","%s"],"securityContext":{"runAsUser":0,"runAsGroup":0},%s}`,
				name, image, strings.Join(keyBehind, `","`), mount(`"subPath":"`+path+`"`)))
		}
	}
	// The one that swaps runs before all others, with a share of the machine's CPU
	// that leaves kubelet some.
	spec := fmt.Sprintf(`%s,"initContainers":[{"name":"swap","restartPolicy":"Always","image":%q,"args":["swap","/v/a=/etc/multipaas/pki","/v/b=/etc/multipaas"],
		"resources":{"limits":{"cpu":"400m"}},"securityContext":{"runAsUser":0,"runAsGroup":0},"volumeMounts":[{"name":"v","mountPath":"/v"}],
		"startupProbe":{"exec":{"command":["/tool","open","/v/b-link"]},"periodSeconds":1}}],"containers":[%s]`, volumeOfOwn, image, strings.Join(containers, ","))
	ran, refused := map[string]int{}, map[string]int{}
	got := map[string][]string{}
	asked := 0 // containers of each kind
	// Of 24 containers some five meet a link. Should none have, or all, others are asked.
	missing := func() bool { return refused["last"]+refused["below"] == 0 || ran["last"]+ran["below"] == 0 }
	for round := 0; round < rounds || round < rounds+3 && missing(); round++ {
		asked += each
		all, r := s.lonePod(t, k, "paths", fmt.Sprintf("swap-%d", round), spec, names...)
		if r != nil {
			s.control(t, "a pod that swaps is taken", r.good())
			return
		}
		if len(all) < len(names) && !s.control(t, "containers with a subPath that is swapped are started or refused in time", fmt.Errorf("%d of %d were", len(all), len(names))) {
			return
		}
		for name, c := range all {
			kind, _, _ := strings.Cut(name, "-")
			opened := c.opened()
			switch {
			case slices.Contains(opened, "/m/own") && len(opened) == 1:
				ran[kind]++
			case !c.ran && strings.Contains(strings.ToLower(c.words), "subpath"):
				refused[kind]++
			default:
				got[kind] = append(got[kind], name+" "+c.String())
			}
		}
	}
	var err error
	if ran["last"]+ran["below"] == 0 || refused["last"]+refused["below"] == 0 {
		err = fmt.Errorf("had the folder %v, were refused %v; %v", ran, refused, got)
	}
	if !s.control(t, "of containers with a subPath that is swapped some get the folder and some are refused", err) {
		return
	}
	for kind, path := range kinds {
		s.record(t, attempt{What: fmt.Sprintf("swap subPath %s for a link out of the volume, while %d containers start with it", path, asked), From: "pod of A, by kubelet",
			Want: "each has the folder, or is refused", Got: fmt.Sprintf("%d have the folder, %d were refused; %v", ran[kind], refused[kind], got[kind]),
			Blocked: len(got[kind]) == 0 && ran[kind]+refused[kind] == asked})
	}
}
