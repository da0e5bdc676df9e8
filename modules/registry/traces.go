package registry

import (
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/multipaas/multipaas/appliance/inventory"
)

// Traces are what a registry in dir makes: it collects its garbage itself, so its
// files are counted and not listed.
func Traces(dir string) inventory.Traces {
	return inventory.Traces{
		Closed: []string{dir},
		Count:  func(number, gauge map[string]int64) { count(dir, number, gauge) },
	}
}

func count(dir string, number, gauge map[string]int64) {
	kinds := map[string]string{
		"blobs":      "registry blobs",
		"_uploads":   "registry uploads",
		"_layers":    "registry links",
		"_manifests": "registry links",
	}
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile
		}
		if d.IsDir() {
			if filepath.Base(filepath.Dir(name)) == "_uploads" {
				number["registry uploads"]++
				return fs.SkipDir
			}
			return nil
		}
		what := "registry files"
		for p := range strings.SplitSeq(strings.TrimPrefix(name, dir), string(filepath.Separator)) {
			if kinds[p] != "" {
				what = kinds[p]
				break
			}
		}
		number[what]++
		if info, err := d.Info(); err == nil && what == kinds["blobs"] {
			gauge["bytes of registry blobs"] += info.Size()
		}
		return nil
	})
}
