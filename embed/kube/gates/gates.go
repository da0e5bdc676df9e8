// Package gates lets Kubernetes and its storage controllers live in one process.
//
// All of them put their feature gates into one table when the process starts, and some
// gates are known to both, each with versions of its own. If the controllers come first,
// Kubernetes panics because of that. So this package comes before: it puts in those gates that
// only the controllers know, with a version that they don't have. Then what they put in is refused
// as a whole, which they don't look at, and Kubernetes puts in those that are known to both.
//
// Packages that don't need each other start in the order of their paths, the language says.
// That is why this one is a module of its own, whose name is before "github.com".
// Package storage imports it, and has the test.
package gates

import (
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
)

func init() {
	v := version.MajorMinor(1, 0)
	err := feature.DefaultMutableFeatureGate.AddVersioned(map[featuregate.Feature]featuregate.VersionedSpecs{
		"Topology":                    {{Version: v, Default: true, PreRelease: featuregate.GA}}, // of the provisioner
		"AnnotateFsResize":            {{Version: v, PreRelease: featuregate.Alpha}},             // of the resizer
		"ReleaseLeaderElectionOnExit": {{Version: v, PreRelease: featuregate.Alpha}},             // of all
		"CSIVolumeGroupSnapshot":      {{Version: v, PreRelease: featuregate.Beta}},              // of the snapshotter
	})
	if err != nil {
		panic(err)
	}
}
