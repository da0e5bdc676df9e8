// Package status shows how an appliance is: over a unix socket on its own
// machine, and as text for people.
//
// Parties: the composition root adds a Server as the first part and says by
// Collect what there is to show; `multipaas status` calls Fetch and Render. Any
// package may import it.
package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/lifecycle"
	"github.com/multipaas/multipaas/appliance/problem"
)

// Status is how an appliance is at one moment.
type Status struct {
	Role    string    `json:"role"` // server or node
	Name    string    `json:"name"`
	Address string    `json:"address,omitempty"`
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`

	Parts    []lifecycle.PartStatus `json:"parts"`
	Problems []problem.Raised       `json:"problems,omitempty"`
	// Items are what the role looks after: a server's workspaces, a node's
	// machines.
	Items []Item `json:"items,omitempty"`
}

// Item is one thing that the role looks after.
type Item struct {
	Kind   string `json:"kind"` // "workspace"
	Name   string `json:"name"`
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
}

// Ready says whether every part is, and if not, which are not and why.
func (s *Status) Ready() (missing []string) {
	for _, p := range s.Parts {
		if p.State == lifecycle.Ready {
			continue
		}
		line := p.Name + " is " + p.State
		if len(p.WaitingFor) > 0 {
			line += " for " + strings.Join(p.WaitingFor, ", ")
		}
		if p.Error != "" {
			line += ": " + p.Error
		}
		missing = append(missing, line)
	}
	return missing
}

// Config says where to show what.
type Config struct {
	Socket  string
	Collect func() Status // called for each request; must not block
	Metrics http.Handler  // for /metrics; nil: there is none
	// More is answered on the socket too, by pattern as http.ServeMux takes it.
	// Only root reaches it.
	More map[string]http.Handler
	Log  *slog.Logger
}

// Server is the part that shows the status.
type Server struct{ cfg Config }

// New makes a Server; Run starts it.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg}
}

// Handler serves /status (JSON), /livez, /readyz and /metrics. Mount the last
// three elsewhere too if they shall be reached by network; /status names
// tenants' workspaces and is not for everybody.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(s.cfg.Collect()); err != nil {
			s.cfg.Log.Debug("status not sent", "err", err)
		}
	})
	mux.Handle("/livez", s.Live())
	mux.Handle("/readyz", s.ReadyHandler())
	if s.cfg.Metrics != nil {
		mux.Handle("GET /metrics", s.cfg.Metrics)
	}
	for pattern, h := range s.cfg.More {
		mux.Handle(pattern, h)
	}
	return mux
}

// Live answers 200 as long as the process can answer at all.
func (s *Server) Live() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "ok")
	})
}

// ReadyHandler answers 200 if every part is ready, else 503 and a line for each
// that is not.
func (s *Server) ReadyHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		st := s.cfg.Collect()
		missing := st.Ready()
		if len(missing) == 0 {
			fmt.Fprintln(w, "ok")
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, strings.Join(missing, "\n"))
	})
}

// Run serves until ctx is done.
func (s *Server) Run(ctx context.Context, ready func()) error {
	if err := os.MkdirAll(filepath.Dir(s.cfg.Socket), 0o755); err != nil {
		return err
	}
	// What a killed run left behind. That no other run is alive is known from
	// the lock on the data directory.
	if err := os.Remove(s.cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ln, err := net.Listen("unix", s.cfg.Socket)
	if err != nil {
		return err
	}
	defer ln.Close() // removes the file too
	if err := os.Chmod(s.cfg.Socket, 0o600); err != nil {
		return err
	}
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	ready()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		// No grace: this part stops last, and those who ask can ask again.
		return srv.Close()
	}
}

// ErrNotRunning is returned by Ask and Fetch when nothing listens on the socket.
var ErrNotRunning = errors.New("multipaas does not run here")

// maxAnswer bounds what is read of an answer: a thousand orphans and ten thousand
// ids are 2 MiB.
const maxAnswer = 64 << 20

// Fetch asks the appliance at the socket how it is.
func Fetch(ctx context.Context, socket string) (*Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var st Status
	if err := Ask(ctx, socket, http.MethodGet, "/status", nil, &st); err != nil {
		return nil, err
	}
	return &st, nil
}

// Ask asks the appliance at the socket for path, and reads into out what it
// answers, JSON. It sends it in, unless that is nil. It takes at most a minute. The
// error wraps ErrNotRunning if nobody listens there.
func Ask(ctx context.Context, socket, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	client := &http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			},
		},
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://multipaas"+path, body)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("ask %s: only root may: %w", socket, err)
		}
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return fmt.Errorf("%w: nothing answers at %s (start it with `multipaas server` or `multipaas node join`)", ErrNotRunning, socket)
		}
		return fmt.Errorf("ask %s: %w", socket, err)
	}
	defer resp.Body.Close()
	answer := io.LimitReader(resp.Body, maxAnswer)
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(answer, 500))
		return fmt.Errorf("ask %s: %s: %s", socket, resp.Status, bytes.TrimSpace(why))
	}
	if err := json.NewDecoder(answer).Decode(out); err != nil {
		return fmt.Errorf("ask %s: %w", socket, err)
	}
	return nil
}
