package balancer

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
)

// maxHello bounds what is read before the server name is known. A ClientHello
// has a few hundred bytes, 2 KiB with post-quantum keys.
const maxHello = 32 << 10

// clientHello is the beginning of a TLS connection.
type clientHello struct {
	serverName string
	recorded   []byte // everything that was read
}

// errHello ends the handshake once the ClientHello was read.
var errHello = errors.New("the ClientHello is here")

// readHello reads a ClientHello from conn, and no more than maxHello bytes, and
// writes nothing. crypto/tls parses it: it begins a handshake on a connection
// that only records.
func readHello(conn net.Conn) (clientHello, error) {
	rec := &recorder{Conn: conn}
	var h clientHello
	var found bool
	err := tls.Server(rec, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		h.serverName, found = info.ServerName, true
		return nil, errHello
	}}).Handshake()
	if !found {
		return clientHello{}, fmt.Errorf("read ClientHello: %w", err)
	}
	h.recorded = rec.read.Bytes()
	return h, nil
}

// recorder keeps what is read and swallows what is written.
type recorder struct {
	net.Conn
	read bytes.Buffer
}

func (r *recorder) Read(p []byte) (int, error) {
	left := maxHello - r.read.Len()
	if left <= 0 {
		return 0, io.ErrShortBuffer
	}
	n, err := r.Conn.Read(p[:min(len(p), left)])
	r.read.Write(p[:n])
	return n, err
}

// Write swallows the alert that crypto/tls sends when we end the handshake.
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }

// Close leaves the connection open.
func (r *recorder) Close() error { return nil }
