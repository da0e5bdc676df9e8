package etcd

import (
	"context"
	"net"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

// asked is what API servers ask for. Planes get nothing else: each would be one more
// thing that one of them could have without a bound, or do to all (a compaction).
var asked = []string{
	pb.KV_Range_FullMethodName, pb.KV_Put_FullMethodName, pb.KV_DeleteRange_FullMethodName, pb.KV_Txn_FullMethodName,
	pb.Watch_Watch_FullMethodName, pb.Lease_LeaseGrant_FullMethodName, pb.Maintenance_Status_FullMethodName,
	healthpb.Health_Check_FullMethodName,
}

const (
	// maxRequests of a plane are under way at one time: its API server has at most 600
	// requests under way itself. Each has a goroutine and 64 KiB of what came, before it has
	// its turn.
	maxRequests = 1024
	// maxStreams of a plane: its API server has one for each kind of object.
	maxStreams = 2048
	// maxConnections of a plane, each with buffers and the state of its encryption: its API
	// server has one for each kind and version, with a stream on each, and those of one that
	// has just ended may not be gone yet.
	maxConnections = 2 * maxStreams
	// maxUnread bytes of bodies may have come from a plane of which no request was made
	// yet: it may have all its requests wait with 64 KiB each.
	maxUnread = maxRequests * (64 << 10)
)

// tap looks at what a plane asks for before there is anything of it but its name.
func (f *front) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	c := planeOf(ctx)
	if c == nil {
		return ctx, nil
	}
	if !slices.Contains(asked, info.FullMethodName) {
		return ctx, status.Errorf(codes.Unimplemented, "planes have no use for %s", info.FullMethodName)
	}
	open, most := &c.share.requests, int64(maxRequests)
	if info.FullMethodName == pb.Watch_Watch_FullMethodName {
		open, most = &c.share.streams, maxStreams
	}
	if open.Add(1) > most {
		open.Add(-1)
		return ctx, status.Errorf(codes.ResourceExhausted, "this workspace has %d requests under way: wait for some of them", most)
	}
	// Of some requests gRPC says no end, but each one's context has one.
	context.AfterFunc(ctx, func() { open.Add(-1) })
	return ctx, nil
}

// door takes connections for gRPC: such as can be ended, and that see what comes. Of a
// plane it takes so many.
type door struct {
	credentials.TransportCredentials
	shares *shares
}

// ServerHandshake implements credentials.TransportCredentials.
func (d door) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := d.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return conn, info, err
	}
	w := &wire{Conn: conn, raw: raw, left: prefaceBytes}
	auth, ok := info.(credentials.TLSInfo)
	if !ok || len(auth.State.VerifiedChains) == 0 || len(auth.State.VerifiedChains[0]) == 0 {
		return w, info, nil
	}
	if user := auth.State.VerifiedChains[0][0].Subject.CommonName; user != Root {
		if w.of, err = d.shares.connect(user, w); err != nil {
			_ = conn.Close()
			return nil, nil, err
		}
	}
	return w, info, nil
}

// Clone implements credentials.TransportCredentials.
func (d door) Clone() credentials.TransportCredentials {
	return door{d.TransportCredentials.Clone(), d.shares}
}

// HTTP/2 (RFC 9113, 3.4 and 4.1).
const (
	prefaceBytes = 24
	headBytes    = 9 // of a frame: 3 of its length, then its type
	dataFrame    = 0
)

// wire is a connection as gRPC reads it.
type wire struct {
	net.Conn
	raw net.Conn
	of  *connection // nil: not a plane's

	// These are the reader's. Left is how much of a frame, or the preface, is to come.
	left int
	head [headBytes]byte
	have int
}

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	came := w.bodies(p[:n])
	if w.of != nil && came > 0 {
		w.of.came(came)
	}
	return n, err
}

// Close implements net.Conn.
func (w *wire) Close() error {
	if w.of != nil {
		w.of.close()
	}
	return w.Conn.Close()
}

// bodies is how many bytes of bodies the frames have that begin in p.
func (w *wire) bodies(p []byte) (bytes int64) {
	for len(p) > 0 {
		if w.left > 0 {
			n := min(w.left, len(p))
			w.left, p = w.left-n, p[n:]
			continue
		}
		n := copy(w.head[w.have:], p)
		if w.have, p = w.have+n, p[n:]; w.have < headBytes {
			break
		}
		w.have, w.left = 0, int(w.head[0])<<16|int(w.head[1])<<8|int(w.head[2])
		if w.head[3] == dataFrame {
			bytes += int64(w.left)
		}
	}
	return bytes
}

// RemoteAddr implements net.Conn. It is how the front comes by the connection: of all
// that gRPC knows of one it tells no more.
func (w *wire) RemoteAddr() net.Addr { return from{w.Conn.RemoteAddr(), w} }

type from struct {
	net.Addr
	wire *wire
}
