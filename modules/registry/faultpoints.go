package registry

import "github.com/multipaas/multipaas/appliance/faultpoint"

// Faultpoints are where a test kills the process in this package.
func Faultpoints() []faultpoint.Point {
	return []faultpoint.Point{
		{Name: "image/push/upload-begun", In: faultpoint.Server, Cuts: "an upload is there, the client does not know"},
		{Name: "image/push/blob-received", In: faultpoint.Server, Cuts: "a blob's bytes are there, under the upload's name"},
		{Name: "image/push/blob-committed", In: faultpoint.Server, Cuts: "a blob has its name, the client does not know"},
		{Name: "image/push/manifest-put", In: faultpoint.Server, Cuts: "manifest and tag are there, the client does not know"},
		{Name: "image/delete/one-removed", In: faultpoint.Server, Cuts: "of a tag and its manifest one is gone"},
		{Name: "image/collect/marked", In: faultpoint.Server, Cuts: "garbage is known, none is removed"},
		{Name: "image/collect/one-removed", In: faultpoint.Server, Cuts: "a part of the garbage is removed"},
	}
}
