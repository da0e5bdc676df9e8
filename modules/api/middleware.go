package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/wire"
)

// request is what is found out about a request on its way in, for what is
// written about it on its way out.
type request struct {
	id        string
	operation access.Operation
	principal *access.Principal
	source    string
	http      *http.Request
	broken    bool // its body could not be read: it is cut off, or its chunks are none
}

// body notes whether it could be read.
type body struct {
	io.ReadCloser
	of *request
}

func (b body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.of.broken = true
	}
	return n, err
}

type requestKey struct{}

// requestOf returns the request of ctx; a zero one outside of requests.
func requestOf(ctx context.Context) *request {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		return r
	}
	return &request{}
}

const (
	// operationTimeout bounds one operation. The slowest wait for a Kubernetes
	// API or for a place to hash a password.
	operationTimeout = 30 * time.Second
	// writeTimeout is how long a client may take to read an answer behind it.
	writeTimeout = 30 * time.Second
)

// streams says which paths keep their connection open for long.
func streams(path string) bool {
	return strings.HasPrefix(path, wire.AgentPath) || strings.HasPrefix(path, "/v1/tasks/") && strings.HasSuffix(path, "/events") ||
		strings.HasSuffix(path, contentPath)
}

// Handler returns the whole API: every operation and the mounted endpoints.
func (a *API) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		req := &request{id: rand.Text()[:16], source: r.RemoteAddr, http: r}
		r = r.WithContext(context.WithValue(r.Context(), requestKey{}, req))
		r.Body = body{r.Body, req}
		out := &response{ResponseWriter: w, to: req}

		h := out.Header()
		h.Set("X-Request-Id", req.id)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Strict-Transport-Security", "max-age=31536000")

		// The server has no WriteTimeout, since some answers are streams. The
		// deadline stays with the connection: set or clear it every time.
		deadline := time.Time{}
		if !streams(r.URL.Path) {
			deadline = began.Add(operationTimeout + writeTimeout)
		}
		_ = http.NewResponseController(w).SetWriteDeadline(deadline) // a test's recorder has none

		defer func() {
			if fault := recover(); fault != nil {
				if fault == http.ErrAbortHandler { //nolint:errorlint // compared the way net/http does
					panic(fault)
				}
				a.log.Error("panic in a request", "request", req.id, "path", r.URL.Path, "fault", fault, "stack", string(debug.Stack()))
				if out.status == 0 {
					a.refuse(r.Context(), out, newProblem(http.StatusInternalServerError, "internal",
						"Something went wrong inside the platform.", "Give the operator the request id."))
				}
			}
			a.done(req, out.status, time.Since(began))
		}()
		a.route(out, r)
	})
}

// route calls the handler of the path; unlike the mux, it answers with problems
// where there is none.
func (a *API) route(w *response, r *http.Request) {
	h, pattern := a.mux.Handler(r)
	if pattern != "" {
		a.mux.ServeHTTP(w, r) // not h: only the mux sets the path's values
		return
	}
	probe := &response{ResponseWriter: nullWriter{http.Header{}}, to: w.to}
	h.ServeHTTP(probe, r)
	p := newProblem(http.StatusNotFound, "not-found", "There is no such path.", "/v1/openapi.json lists all.")
	if probe.status == http.StatusMethodNotAllowed {
		p = newProblem(http.StatusMethodNotAllowed, "method-not-allowed",
			"This path does not know the method "+short(r.Method)+".", "/v1/openapi.json lists all.")
		w.Header().Set("Allow", probe.Header().Get("Allow"))
	}
	a.refuse(r.Context(), w, p)
}

// done writes down what became of a request. Query, headers and body have no
// place here: tokens and passwords are in them.
func (a *API) done(req *request, status int, took time.Duration) {
	status = cmp.Or(status, http.StatusOK)
	r := req.http
	name := cmp.Or(string(req.operation), "other")
	a.metrics.requests.WithLabelValues(name, strconv.Itoa(status)).Inc()
	a.metrics.seconds.WithLabelValues(name).Observe(took.Seconds())
	level := slog.LevelDebug
	if status >= 500 {
		level = slog.LevelWarn
	}
	a.log.Log(r.Context(), level, "request", "id", req.id, "method", r.Method, "path", r.URL.Path,
		"operation", string(req.operation),
		"status", status, "took", took, "who", req.principal.Name(), "source", req.source)
	if req.operation != "" && r.Method != http.MethodGet {
		a.cfg.Audit.Record(context.WithoutCancel(r.Context()), Entry{
			At: time.Now().UTC(), Request: req.id, Who: req.principal.Name(), Source: req.source,
			Operation: string(req.operation), Target: r.URL.Path, Status: status, Outcome: outcome(status),
		})
	}
}

// Audit keeps record of writes.
type Audit interface {
	// Record is called once for every write that was asked for, also for those
	// that were refused, after the answer. It must not block for long and is
	// called concurrently.
	Record(ctx context.Context, e Entry)
}

// Entry is one line of the record: who asked for what, and what became of it.
type Entry struct {
	At        time.Time
	Request   string
	Who       string
	Source    string
	Operation string
	Target    string
	Status    int
	Outcome   string // done, denied, refused or failed
}

func outcome(status int) string {
	switch {
	case status < 400:
		return "done"
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return "denied"
	case status < 500:
		return "refused"
	}
	return "failed"
}

type logAudit struct{ log *slog.Logger }

func (l logAudit) Record(ctx context.Context, e Entry) {
	l.log.InfoContext(ctx, "audit", "request", e.Request, "who", e.Who, "source", e.Source, "operation", e.Operation,
		"target", e.Target, "status", e.Status, "outcome", e.Outcome)
}

// response remembers the status.
type response struct {
	http.ResponseWriter
	status int
	to     *request
}

func (r *response) WriteHeader(status int) {
	if status == http.StatusInternalServerError && r.to.broken {
		status = http.StatusBadRequest // huma takes it for our fault: see transform
	}
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *response) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (r *response) Unwrap() http.ResponseWriter { return r.ResponseWriter }

type nullWriter struct{ header http.Header }

func (n nullWriter) Header() http.Header         { return n.header }
func (n nullWriter) Write(b []byte) (int, error) { return len(b), nil }
func (n nullWriter) WriteHeader(int)             {}

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	make := promauto.With(r)
	return &metrics{
		requests: make.NewCounterVec(prometheus.CounterOpts{
			Name: "multipaas_api_requests_total", Help: "Requests to the API by operation and status.",
		}, []string{"operation", "status"}),
		seconds: make.NewHistogramVec(prometheus.HistogramOpts{
			Name: "multipaas_api_request_seconds", Help: "How long requests to the API took, by operation.",
			Buckets: []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"operation"}),
	}
}
