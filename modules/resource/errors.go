package resource

import (
	"errors"
	"strings"
)

// What modules tell each other about workspaces. That something is not there, or
// there already, is said by modules/store.
var (
	// ErrNotReady is returned for a workspace whose plane is not serving.
	ErrNotReady = errors.New("the workspace is not ready yet")
	// ErrUnknownPlane is returned for a TLS server name that is no plane's.
	ErrUnknownPlane = errors.New("no workspace has this API address")
	// ErrSystemNamespace is returned for a namespace that Kubernetes needs.
	ErrSystemNamespace = errors.New("this namespace belongs to Kubernetes")
)

// UnfitImageError says why an image that there is can't run on a machine, as the
// end of a sentence about it, and what to do.
type UnfitImageError struct{ Why string }

func (e *UnfitImageError) Error() string { return "the image can't run here: " + e.Why }

// IsSystemNamespace says whether a namespace's name belongs to Kubernetes, which
// reserves the prefix.
func IsSystemNamespace(name string) bool { return strings.HasPrefix(name, "kube-") }
