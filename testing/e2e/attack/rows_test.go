package attack

import (
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// rows reads a file of testdata. Names in braces, {shop}, stand for what is given
// in pairs, for much is known only when the datacenter stands.
func rows[T any](t testing.TB, file string, names ...string) (all T) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", file))
	if err == nil {
		data, err = yaml.YAMLToJSONStrict(data)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	var pairs []string
	for i := 0; i+1 < len(names); i += 2 {
		text, err := json.Marshal(names[i+1])
		if err != nil {
			t.Fatal(err)
		}
		pairs = append(pairs, "{"+names[i]+"}", string(text[1:len(text)-1]))
	}
	if err := yaml.UnmarshalStrict([]byte(strings.NewReplacer(pairs...).Replace(string(data))), &all); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return all
}

// fields is a part of an object, as a piece of JSON to merge.
type fields map[string]any

func (f fields) String() string {
	if len(f) == 0 {
		return ""
	}
	data, err := json.Marshal(map[string]any(f))
	if err != nil {
		panic(err) // it was JSON before
	}
	return string(data[1 : len(data)-1])
}

// badPod takes something of its machine: it is merged into a harmless pod's
// spec and its container.
type badPod struct{ Spec, Container fields }

func badPods(t testing.TB) map[string]badPod { return rows[map[string]badPod](t, "pods.yaml") }

// badPath is a pod whose volume names a path that leads out of it, with the words
// that refuse it.
type badPath struct {
	Volume, Mount fields
	Words         string
}

// pod is its volume and its mount, as pieces of a pod's spec and of its container.
func (b badPath) pod() (spec, container string) {
	with := func(base, more fields) fields {
		all := fields{}
		for _, f := range []fields{base, more} {
			for k, v := range f {
				all[k] = v
			}
		}
		return all
	}
	volume := fields{"emptyDir": fields{}}
	if b.Volume != nil {
		volume = b.Volume
	}
	return fields{"volumes": []fields{with(fields{"name": "v"}, volume)}}.String(),
		fields{"volumeMounts": []fields{with(fields{"name": "v", "mountPath": "/m"}, b.Mount)}}.String()
}

// badPaths are such pods, and keys that would become names of files.
type badPaths struct {
	Pods map[string]badPath
	Keys []string
}

// apiRows is what the API is asked.
type apiRows struct {
	Paths map[string]struct {
		Target  string
		Headers []string
	}
	Bodies map[string]string
	Types  []string
	Names  []string
	Apps   map[string]string
	Images []string
}

// registryRows is what the registry is asked.
type registryRows struct {
	Scopes       []string
	Requests     []struct{ Method, Path, Body string }
	Workspaces   []string
	Mounts       []string
	Tags         []string
	Repositories []string
}

// registryNames are what testdata says of the platform's registry.
func (s *suite) registryNames() []string {
	address := s.RegistryAddress()
	return []string{"registry", address, "REGISTRY", strings.ToUpper(address), "registry, escaped", url.QueryEscape(address)}
}
