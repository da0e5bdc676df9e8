package registry

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "image/push/upload-begun", In: failpoint.Server, Cuts: "an upload is there, the client does not know"},
		{Name: "image/push/blob-received", In: failpoint.Server, Cuts: "a blob's bytes are there, under the upload's name"},
		{Name: "image/push/blob-committed", In: failpoint.Server, Cuts: "a blob has its name, the client does not know"},
		{Name: "image/push/manifest-put", In: failpoint.Server, Cuts: "manifest and tag are there, the client does not know"},
		{Name: "image/delete/one-removed", In: failpoint.Server, Cuts: "of a tag and its manifest one is gone"},
		{Name: "image/collect/marked", In: failpoint.Server, Cuts: "garbage is known, none is removed"},
		{Name: "image/collect/one-removed", In: failpoint.Server, Cuts: "a part of the garbage is removed"},
	}
}
