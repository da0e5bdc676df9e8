package api

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
)

// Files brings volumes out and in as files (modules/internal/archive); modules/node. All methods may be called
// concurrently. An *access.Refusal says why not now: who asks again goes on where it ended.
type Files interface {
	// Export writes some of a snapshot's file to w, from an offset on, and nothing if there is no more. It blocks as
	// long as w does; deadline is w's. A Refusal: nothing was written.
	Export(ctx context.Context, s *resource.Snapshot, from int64, w io.Writer, deadline func(time.Time) error) error
	// BeginImport waits until the host of a volume wants its file, from an offset on, which Import is then to send, soon. It
	// blocks for some seconds.
	BeginImport(ctx context.Context, v *resource.Volume) (id string, from int64, err error)
	// Import reads in until the host has all, or ends it. deadline is of in.
	Import(ctx context.Context, v *resource.Volume, id string, in io.Reader, deadline func(time.Time) error) error
}

// The operations of which a body is as long as it is, without a time limit.
const (
	opExport access.Operation = "snapshots.export"
	opImport access.Operation = "volumes.import"
)

// contentPath ends the paths of those.
const contentPath = "/content"

// streaming says which operations have no time limit.
func streaming(op access.Operation) bool { return op == opEvents || op == opExport || op == opImport }

// Raw is the request and the answer as they are.
type Raw struct {
	r *http.Request
	w http.ResponseWriter
}

// Resolve is for huma.
func (in *Raw) Resolve(ctx huma.Context) []error {
	in.r, in.w = humago.Unwrap(ctx)
	return nil
}

// exportOperation adds what gives a snapshot out as a file.
func (a *API) exportOperation(snapshots *collection[resource.Snapshot, *resource.Snapshot]) {
	op := snapshots.operation("export", http.MethodGet, "A snapshot as a file, from an offset on: some of it, then ask for what "+
		"comes after that. An empty answer: that was all. The file ends with the SHA-256 of it, which is yours to add")
	op.path += contentPath
	add(a, op, func(ctx context.Context, in *struct {
		Place
		Raw
		From int64 `query:"from" minimum:"0" doc:"How many octets you have"`
	}) (*huma.StreamResponse, error) {
		s, err := snapshots.find(ctx, in.Place)
		if err != nil {
			return nil, err
		}
		switch {
		case s.Spec.Block:
			return nil, newProblem(http.StatusUnprocessableEntity, "invalid", "A volume of raw blocks can't be exported: a file has "+
				"files and folders.", "Copy what is in it by a pod.")
		case s.Deleting():
			return nil, deleting("snapshot", s.Name)
		case !s.Made():
			text := "The snapshot " + s.Name + " is not made yet"
			if c := s.Status.Conditions.Get(resource.SnapshotReady); c != nil && c.Message != "" {
				text += ": " + c.Message
			}
			return nil, conflict("not-ready", capital(text), "Wait until it is Ready; `mp snapshots show "+s.Name+"` says more.")
		}
		return &huma.StreamResponse{Body: func(huma.Context) {
			in.w.Header().Set("Content-Type", "application/octet-stream")
			out := &begun{ResponseWriter: in.w}
			err := a.cfg.Files.Export(ctx, s, in.From, out, http.NewResponseController(in.w).SetWriteDeadline)
			switch {
			case err != nil && !out.begun:
				a.refuse(ctx, in.w, err)
			case err != nil:
				panic(http.ErrAbortHandler) // or who reads would take it for the end
			case !out.begun:
				in.w.WriteHeader(http.StatusOK)
			}
		}}, nil
	})
}

// begun notes whether something was written.
type begun struct {
	http.ResponseWriter
	begun bool
}

func (b *begun) Write(p []byte) (int, error) {
	b.begun = true
	return b.ResponseWriter.Write(p)
}

// ImportBegun is the answer to volumes.beginimport.
type ImportBegun struct {
	ID   string `json:"id" doc:"What volumes.import is to be called with, within 20 seconds"`
	From int64  `json:"from" doc:"The offset in the file from which on it is to be sent"`
}

// importOperations adds what takes a volume as a file.
func (a *API) importOperations(volumes *collection[resource.Volume, *resource.Volume]) {
	find := func(ctx context.Context, in Place) (*resource.Volume, error) {
		v, err := volumes.find(ctx, in)
		switch c := (*resource.Condition)(nil); {
		case err != nil:
		case v.Deleting():
			err = deleting("volume", v.Name)
		case !v.Importing():
			err = conflict("conflict", "All of the volume "+v.Name+" is there: it takes no file.", "Import into a new volume.")
		default:
			if c = v.Status.Conditions.Get(resource.VolumeReady); c != nil && c.Final {
				err = conflict("conflict", capital(c.Message), "")
			}
		}
		return v, err
	}
	begin := volumes.operation("beginimport", http.MethodPost, "Ask from where on a volume's file is to be sent")
	begin.path, begin.status = begin.path+contentPath, http.StatusOK
	add(a, begin, func(ctx context.Context, in *struct{ Place }) (*Output[ImportBegun], error) {
		v, err := find(ctx, in.Place)
		if err != nil {
			return nil, err
		}
		id, from, err := a.cfg.Files.BeginImport(ctx, v)
		return ok(ImportBegun{id, from}), err
	})
	op := volumes.operation("import", http.MethodPut, "Send a volume's file, from the offset on that volumes.beginimport "+
		"has said, as the body of the request. The volume is there when it is Ready")
	op.path, op.status = op.path+contentPath, http.StatusNoContent
	add(a, op, func(ctx context.Context, in *struct {
		Place
		Raw
		ID string `query:"id" maxLength:"64" required:"true" doc:"What volumes.beginimport has said"`
	}) (*Empty, error) {
		v, err := find(ctx, in.Place)
		if err != nil {
			return nil, err
		}
		deadline := http.NewResponseController(in.w).SetReadDeadline
		return &Empty{}, a.cfg.Files.Import(ctx, v, strings.TrimSpace(in.ID), in.r.Body, deadline)
	})
}
