package datacenter

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
)

// Dialer connects to the server, whatever host name is asked for: no resolver
// knows the platform's names here.
func Dialer(server netip.Addr) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		dialer := net.Dialer{Timeout: 5 * time.Second}
		return dialer.DialContext(ctx, network, net.JoinHostPort(server.String(), port))
	}
}

// Client asks the server, and trusts an authority and nothing else.
func Client(server netip.Addr, authority *x509.CertPool) *http.Client {
	return &http.Client{
		Timeout:       time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:       Dialer(server),
			TLSClientConfig:   &tls.Config{RootCAs: authority},
			DisableKeepAlives: true,
			ForceAttemptHTTP2: true,
		},
	}
}

// Here is a desk on this machine.
type Here struct {
	Binary string // the one file
	Dir    string
	// Say is told what the client tells people. nil: nobody.
	Say func(format string, args ...any)
}

func (h Here) MP(ctx context.Context, who string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, h.Binary, append([]string{"mp"}, args...)...)
	cmd.Env = append(os.Environ(), "MP_CONFIG="+h.Path("mp-"+who))
	var out strings.Builder
	told := &told{say: h.Say}
	if args[0] == "session" {
		told.say = nil // a question of ours
	}
	cmd.Stdout, cmd.Stderr = &out, told
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("mp %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(told.all.String()))
	}
	return out.String(), nil
}

func (h Here) Path(name string) string { return filepath.Join(h.Dir, name) }

func (h Here) Write(_ context.Context, name string, data []byte, mode fs.FileMode) error {
	return atomicfile.Write(h.Path(name), data, mode)
}

// told passes whole lines on, and keeps all.
type told struct {
	say  func(format string, args ...any)
	line bytes.Buffer
	all  bytes.Buffer
}

func (w *told) Write(p []byte) (int, error) {
	w.all.Write(p)
	w.line.Write(p)
	for w.say != nil {
		line, rest, whole := bytes.Cut(w.line.Bytes(), []byte("\n"))
		if !whole {
			break
		}
		w.say("    %s", line)
		w.line = *bytes.NewBuffer(rest)
	}
	return len(p), nil
}
