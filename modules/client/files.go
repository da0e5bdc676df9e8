package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/modules/internal/archive"
	"github.com/multipaas/multipaas/modules/resource"
)

const (
	// filePatience is how long a file may make no progress: a host with many files looks for long for where to go on.
	filePatience = 30 * time.Minute
	// fileStall is how long one request may be without a piece. Servers give up after 20 s.
	fileStall = time.Minute
	// exportLife is how long the snapshot is kept that is made for an export.
	exportLife = 7 * 24 * time.Hour
	// fileNoteEvery is how often it is taken down how much there is.
	fileNoteEvery = 5 * time.Second
)

func (p *program) fileCommands(volumes noun[resource.Volume]) []*command {
	return []*command{
		{
			name:  "export",
			usage: "write what is in a volume, or a snapshot, to a file",
			args:  "NAME FILE",
			names: volumes.names,
			about: `NAME is a volume, or if there is none of that name, a snapshot. Of a volume a snapshot is made first,
which is deleted when all of it is there, or after 7 days. The file is a tar, with owners as machines have them,
links, holes, access control lists and users' attributes, and ends with its checksum. Left out are devices, sockets,
attributes that are not users' own, and those beyond 768 KiB of one file: how many is said at the end, and stands in
summary.json in it. Until all is there it is called FILE.part, and the same command goes on with that
when it was cut off.`,
			examples: []string{"mp volumes export db db.tar", "mp volumes export db-before before.tar"},
			flags:    flags(placeFlags(inWorkspace)),
			run:      volumes.on((*call).exportVolume),
		},
		{
			name:  "import",
			usage: "make a volume from a file that 'mp volumes export' has written",
			args:  "FILE NAME",
			about: `The new volume is local, or shared if --class says so, whatever the file is of. Nobody has it before all of the
file is in it and its checksum is right. Files belong to the same users as they did, as the machines of this workspace have them.
Shared volumes have no access control lists: a file with some is refused there. The same command goes on when it was cut off.`,
			examples: []string{"mp volumes import db.tar db2", "mp volumes import db.tar db2 --size 20Gi",
				"mp volumes import files.tar files2 --class shared"},
			flags: flags(placeFlags(inWorkspace), sizeFlag("`SIZE` of the volume, if not as the file's was: 20Gi"),
				&cli.StringFlag{Name: "class", Usage: "`CLASS` of it: local, which is the default, or shared"},
				replicasFlag(), arbiterFlag(),
				&cli.BoolFlag{Name: "encrypted", Usage: "encrypt what is on its hosts' disks"}, resultFlag()),
			run: (*call).importVolume,
		},
	}
}

// exporting is what is kept beside a file that is not whole.
type exporting struct {
	Of       string `json:"of"` // path of what was asked for, in the API
	Server   string `json:"server"`
	Snapshot string `json:"snapshot"`         // path of that, in the API
	Volume   string `json:"volume,omitempty"` // name of the volume, if the snapshot was made for this
	UID      string `json:"uid,omitempty"`    // the snapshot's, once it is there
	Bytes    int64  `json:"bytes"`            // so many are on the disk
	Sum      []byte `json:"sum,omitempty"`    // of those, as SHA-256 keeps it

	file  *os.File
	note  string // the file that this is in
	sum   hash.Hash
	noted time.Time
}

// openExport opens what is there of a file, or begins it by what first says.
func openExport(file, of, server string, first func(*exporting) error) (*exporting, error) {
	part := file + ".part"
	e := &exporting{Of: of, Server: server, note: part + ".json", sum: sha256.New(), noted: time.Now()}
	if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
		return nil, cmp.Or(err, failf("choose another name", "%s is there already", printable(file)))
	}
	data, err := os.ReadFile(e.note)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(part); !errors.Is(err, fs.ErrNotExist) {
			return nil, cmp.Or(err, failf("choose another name", "%s is there already", printable(part)))
		}
		if err = first(e); err == nil {
			err = e.keep()
		}
	case err == nil:
		if json.Unmarshal(data, e) != nil || e.Of != of || e.Server != server {
			return nil, failf("choose another name, or delete it", "%s is of something else", printable(part))
		}
		if e.Sum != nil {
			err = e.sum.(encoding.BinaryUnmarshaler).UnmarshalBinary(e.Sum)
		}
	}
	if err == nil {
		e.file, err = os.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err == nil {
		err = e.file.Truncate(e.Bytes) // what came after was perhaps not written
	}
	if err == nil {
		_, err = e.file.Seek(e.Bytes, io.SeekStart)
	}
	return e, err
}

// keep takes down how much there is.
func (e *exporting) keep() (err error) {
	e.noted = time.Now()
	if e.file != nil {
		if err := e.file.Sync(); err != nil {
			return err
		}
		if e.Sum, err = e.sum.(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
			return err
		}
	}
	return atomicfile.WriteJSON(e.note, e)
}

// Write is for what comes.
func (e *exporting) Write(p []byte) (int, error) {
	n, err := e.file.Write(p)
	e.sum.Write(p[:n])
	e.Bytes += int64(n)
	if err == nil && time.Since(e.noted) > fileNoteEvery {
		err = e.keep()
	}
	return n, err
}

// finish gives the file its end and its name.
func (e *exporting) finish(file string) error {
	end, err := archive.Trailer(e.sum.Sum(nil), time.Now())
	if err == nil {
		_, err = e.file.Write(end)
	}
	if err == nil {
		err = e.file.Sync()
	}
	if err != nil {
		return err
	}
	if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
		return cmp.Or(err, failf("rename it", "all is in %s, but %s is there meanwhile", printable(e.file.Name()), printable(file)))
	}
	if err := os.Rename(e.file.Name(), file); err != nil {
		return err
	}
	return os.Remove(e.note)
}

func (c *call) exportVolume(of thing) error {
	file, snapshots := c.arg(1), c.snapshots()
	r, err := c.remote()
	if err != nil {
		return err
	}
	e, err := openExport(file, of.path, r.server, func(e *exporting) error {
		var v resource.Volume
		err := c.get(of.path, &v)
		no, missing := errors.AsType[*Problem](err)
		if missing && no.exitCode() == ExitNotFound { // of that name
			it, err := snapshots.named(c, of.name)
			if err == nil {
				err = c.get(it.path, &resource.Snapshot{})
			}
			e.Snapshot = it.path
			return err
		}
		if err != nil {
			return err
		}
		it, err := snapshots.named(c, snapshotName(of.name+"-export"))
		e.Snapshot, e.Volume = it.path, of.name
		return err
	})
	if e != nil && e.file != nil {
		defer e.file.Close()
	}
	if err != nil {
		return err
	}
	if e.UID == "" {
		if err := c.beginExport(e); err != nil {
			return err
		}
	}
	p := c.fileProgress("have come")
	err = c.receive(r, e, p)
	p.stop()
	if err != nil {
		if errors.Is(err, context.Canceled) || c.Context.Context.Err() != nil {
			err = &failure{text: "interrupted", remedy: "go on with the same command", code: ExitInterrupted}
		}
		return errors.Join(err, e.keep())
	}
	if err := e.finish(file); err != nil {
		return err
	}
	if e.Volume != "" {
		if err := c.write(http.MethodDelete, e.Snapshot, nil, nil); err != nil {
			c.note("mp: the snapshot that was made for it is still there, until its time is over: %s", printable(err.Error()))
		}
	}
	c.noteLeftOut(file)
	_, err = fmt.Fprintf(c.out, "%s holds %s, %s.\n", printable(file), printable(of.inFull()), resource.Bytes.Text(e.Bytes))
	return err
}

// beginExport finds the snapshot, or has it made.
func (c *call) beginExport(e *exporting) error {
	var s resource.Snapshot
	err := c.get(e.Snapshot, &s)
	if no, ok := errors.AsType[*Problem](err); ok && no.exitCode() == ExitNotFound && e.Volume != "" {
		in := map[string]any{"spec": map[string]any{"volume": e.Volume, "until": time.Now().Add(exportLife).UTC()}}
		var accepted *resource.Accepted[resource.Snapshot]
		if accepted, err = c.snapshots().write(c, http.MethodPut, e.Snapshot, in, "If-None-Match", "*"); err == nil {
			s = accepted.Resource
		}
	}
	if err != nil {
		if e.Bytes == 0 { // nothing was begun
			err = errors.Join(err, os.Remove(e.file.Name()), os.Remove(e.note))
		}
		return err
	}
	e.UID = s.UID
	return e.keep()
}

// receive fetches a snapshot's file to the end.
func (c *call) receive(r *remote, e *exporting, p *fileProgress) error {
	return c.persist(p, func(ctx context.Context) (over bool, err error) {
		var s resource.Snapshot
		if err := c.get(e.Snapshot, &s); err != nil {
			return false, err
		}
		why, text := s.Status.Conditions.Get(resource.SnapshotReady), "the snapshot is not there any more"
		switch {
		case s.UID != e.UID || s.Deleting():
			return false, failf("delete "+printable(e.file.Name())+", and begin anew", "%s", text)
		case why != nil && why.Final:
			return false, failf("delete "+printable(e.file.Name())+", and begin anew", "%s: %s", text, printable(why.Message))
		}
		resp, err := r.stream(ctx, http.MethodGet, e.Snapshot+"/content?from="+strconv.FormatInt(e.Bytes, 10), nil, 0)
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			_, err := r.read(resp)
			return false, err
		}
		n, err := io.Copy(e, p.reads(resp.Body, e.Bytes))
		return n == 0 && err == nil, err
	})
}

// importVolume makes a volume of a file.
func (c *call) importVolume() error {
	file, volumes := c.arg(0), c.volumes()
	it, err := volumes.named(c, c.arg(1))
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	about, length, err := aboutFile(f)
	if err != nil {
		return failf("it is what 'mp volumes export' writes", "%s: %v", printable(file), err)
	}
	c.noteLeftOut(file)
	var v resource.Volume
	err = c.get(it.path, &v)
	if no, ok := errors.AsType[*Problem](err); ok && no.exitCode() == ExitNotFound {
		size := about.SizeBytes
		if c.String("size") != "" {
			if size, err = amount(c, "size"); err != nil {
				return err
			}
		}
		in := map[string]any{"spec": map[string]any{"class": c.String("class"), "sizeBytes": size, "import": true,
			"encrypted": c.Bool("encrypted"), "replicas": c.Int("replicas"), "arbiter": c.Bool("arbiter")}}
		if c.String("class") == "" {
			delete(in["spec"].(map[string]any), "class")
		}
		var accepted *resource.Accepted[resource.Volume]
		if accepted, err = volumes.write(c, http.MethodPut, it.path, in, "If-None-Match", "*"); err == nil {
			v = accepted.Resource
		}
	}
	if err != nil {
		return err
	}
	if !v.Importing() {
		return failf("choose another name", "volume %s is there already", printable(it.label))
	}
	r, err := c.remote()
	if err != nil {
		return err
	}
	p := c.fileProgress("are sent")
	err = c.persist(p, func(ctx context.Context) (bool, error) { return c.sendFile(ctx, r, p, f, length, it.path, &v) })
	p.stop()
	if c.Context.Context.Err() != nil {
		return &failure{text: "interrupted", remedy: "go on with the same command", code: ExitInterrupted}
	}
	if err != nil {
		return err
	}
	return volumes.printResult(c, &v, "%s is ready.", volumes.subject(it))
}

// sendFile sends what a volume lacks, and says whether it is there.
func (c *call) sendFile(
	ctx context.Context, r *remote, p *fileProgress, f *os.File, length int64, path string, v *resource.Volume,
) (bool, error) {
	var now resource.Volume
	if err := c.get(path, &now); err != nil {
		return false, err
	}
	uid := v.UID
	*v = now
	ready := v.Status.Conditions.Get(resource.VolumeReady)
	switch {
	case v.UID != uid || v.Deleting():
		return false, failf("begin anew", "the volume was deleted meanwhile")
	case !v.Importing():
		return ready != nil && ready.Status == resource.True, nil
	case ready != nil && ready.Final:
		return false, failf("delete the volume", "%s", printable(ready.Message))
	}
	var begun struct {
		ID   string `json:"id"`
		From int64  `json:"from"`
	}
	if err := r.do(ctx, http.MethodPost, path+"/content", nil, &begun); err != nil {
		return false, err
	}
	if begun.From > length {
		return false, failf("import the file that was begun with", "the volume has more than this file holds")
	}
	body := p.reads(io.NewSectionReader(f, begun.From, length-begun.From), begun.From)
	resp, err := r.stream(ctx, http.MethodPut, path+"/content?id="+url.QueryEscape(begun.ID), body, length-begun.From)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	_, err = r.read(resp)
	return false, err
}

// aboutFile reads what a file says of itself. One that is cut off is known by its end.
func aboutFile(f *os.File) (about archive.About, length int64, err error) {
	in := archive.NewReader(f)
	h, err := in.Next()
	if err == nil && (h.Path != archive.AboutName || h.Size > 1<<20) {
		err = archive.ErrFormat
	}
	if err == nil {
		err = json.NewDecoder(in).Decode(&about)
	}
	if err == nil && about.Format != archive.Format {
		err = fmt.Errorf("its format is %.40q, and this client knows %q", about.Format, archive.Format)
	}
	if err != nil {
		return about, 0, err
	}
	if length, err = f.Seek(0, io.SeekEnd); err != nil {
		return about, 0, err
	}
	end := make([]byte, min(length, 1<<12))
	if _, err := f.ReadAt(end, length-int64(len(end))); err != nil {
		return about, 0, err
	}
	if !bytes.Contains(end, []byte("sha256")) {
		err = errors.New("it is cut off: its export has not come to its end")
	}
	return about, length, err
}

// persist has try tried until it is over, or there was no progress for long. What a server refuses now, or is cut
// off, is tried again.
func (c *call) persist(p *fileProgress, try func(ctx context.Context) (over bool, err error)) error {
	ctx := c.Context.Context
	for backoff, last := firstBackoff, int64(-1); ; {
		one, cancel := context.WithCancel(ctx)
		p.begin(cancel)
		over, err := try(one)
		cancel()
		if over {
			return nil
		}
		prob, answered := errors.AsType[*Problem](err)
		_, known := errors.AsType[*failure](err)
		_, local := errors.AsType[*fs.PathError](err)
		if known || local || answered && prob.Status < http.StatusInternalServerError &&
			prob.Status != http.StatusTooManyRequests && prob.Status != http.StatusConflict {
			return err
		}
		if at := p.at(); at > last {
			backoff, last = firstBackoff, at
		}
		if err == nil && backoff == firstBackoff {
			backoff = 0 // it goes on
		} else if err != nil {
			p.waits(err)
		}
		if p.quiet() > filePatience {
			return &failure{text: fmt.Sprintf("nothing has come for %v: %v", filePatience, err),
				remedy: "go on with the same command", code: ExitTimeout}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(backoff):
		}
		backoff = min(max(2*backoff, firstBackoff), 5*time.Second)
	}
}

// stream sends a request with a body that is as long as it is, and returns the answer as it is.
func (r *remote) stream(ctx context.Context, method, path string, body io.Reader, length int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, r.server+path, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = length
	req.Header.Set("User-Agent", "mp/"+buildVersion())
	if body != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	if r.token != "" {
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return nil, reach(r.server, err)
	}
	return resp, nil
}
