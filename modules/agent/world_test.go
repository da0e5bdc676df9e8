package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/util/flowcontrol"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// server is a Hub that says what a test has it say.
type server struct {
	*httptest.Server
	ca     *pki.CA
	states chan string // lines of the stream
	stop   chan struct{}

	mu      sync.Mutex
	removed bool
	wiped   bool        // said so, after it was removed
	last    wire.Report // with what was said last of each volume of the last state
	reports []wire.Report
	pages   []wire.Items
	volumes map[string]wire.VolumeReport
	wants   []string          // UIDs of the last state's volumes
	anew    bool              // hosts are asked to say all again
	show    []netip.Addr      // what hosts are asked to show
	shown   map[string]string // address -> where that came from
}

func newServer(t *testing.T) *server {
	t.Helper()
	certPEM, keyPEM, err := pki.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.ParseCA(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	leaf, key, err := ca.Issue(pki.Request{CommonName: "s1", Server: true, Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(append(leaf, certPEM...), key)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{ca: ca, states: make(chan string), stop: make(chan struct{}), volumes: map[string]wire.VolumeReport{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.StatePath, s.state)
	mux.HandleFunc("POST "+wire.ReportPath, s.report)
	mux.HandleFunc("POST "+wire.ItemsPath, s.items)
	mux.HandleFunc("POST "+wire.AddressPath, s.address)
	mux.HandleFunc("POST "+wire.WipedPath, func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		s.wiped = s.removed
		s.mu.Unlock()
		fmt.Fprintln(w, "{}")
	})
	mux.HandleFunc("POST "+wire.MachineCertificatesPath, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(wire.MachineCertificates{KubeletClient: leaf, KubeletServing: leaf, KubeProxy: leaf})
	})
	s.Server = httptest.NewUnstartedServer(mux)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(func() { close(s.stop); s.Close() })
	return s
}

func (s *server) gone(w http.ResponseWriter) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed {
		w.WriteHeader(http.StatusGone)
	}
	return s.removed
}

func (s *server) state(w http.ResponseWriter, r *http.Request) {
	if s.gone(w) {
		return
	}
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case <-s.stop:
			return
		case <-r.Context().Done():
			return
		case line := <-s.states:
			if line == "" {
				return
			}
			_, _ = w.Write([]byte(line + "\n"))
			_ = http.NewResponseController(w).Flush()
		}
	}
}

func (s *server) report(w http.ResponseWriter, r *http.Request) {
	if s.gone(w) {
		return
	}
	var rep wire.Report
	if err := json.NewDecoder(r.Body).Decode(&rep); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	s.reports = append(s.reports, rep)
	s.last = rep
	s.fill()
	answer := wire.ReportAnswer{Show: s.show, Anew: s.anew}
	s.mu.Unlock()
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *server) items(w http.ResponseWriter, r *http.Request) {
	if s.gone(w) {
		return
	}
	var page wire.Items
	if err := json.NewDecoder(r.Body).Decode(&page); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pages = append(s.pages, page)
	for _, item := range page.Items {
		var v wire.VolumeReport
		if err := json.Unmarshal(item.Report, &v); err != nil || item.Kind != wire.VolumeItem {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.volumes[v.UID] = v
	}
	s.fill()
	_, _ = w.Write([]byte("{}"))
}

// fill puts into the last report what was said of volumes. The caller holds s.mu.
func (s *server) fill() {
	s.last.Volumes = nil
	for _, uid := range s.wants {
		if v, ok := s.volumes[uid]; ok {
			s.last.Volumes = append(s.last.Volumes, v)
		}
	}
}

func (s *server) address(w http.ResponseWriter, r *http.Request) {
	var req wire.AddressShown
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	from, _, _ := net.SplitHostPort(r.RemoteAddr)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shown == nil {
		s.shown = map[string]string{}
	}
	s.shown[req.Address.String()] = from
	_, _ = w.Write([]byte("{}"))
}

// say streams a state with these networks and machines; a machine is NETWORK/UID,
// and with a dash before it, it shall be removed.
func (s *server) say(t *testing.T, networks string, machines string) {
	t.Helper()
	s.sayState(t, stateOf(networks, machines))
}

func (s *server) sayState(t *testing.T, state *wire.State) {
	t.Helper()
	line, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.wants = nil
	for _, v := range state.Volumes {
		s.wants = append(s.wants, v.UID)
	}
	s.mu.Unlock()
	select {
	case s.states <- string(line):
	case <-time.After(10 * time.Second):
		t.Fatal("no agent listens")
	}
}

func stateOf(networks, machines string) *wire.State {
	state := &wire.State{Node: "n1"}
	for _, id := range strings.Fields(networks) {
		state.Networks = append(state.Networks, wire.Network{ID: id})
	}
	for _, text := range strings.Fields(machines) {
		network, uid, _ := strings.Cut(strings.TrimPrefix(text, "-"), "/")
		state.Machines = append(state.Machines, wire.Machine{UID: uid, NetworkID: network, Remove: text[0] == '-'})
	}
	return state
}

// reported waits for a report that is as ok says.
func (s *server) reported(t *testing.T, what string, ok func(wire.Report) bool) {
	t.Helper()
	await(t, "a report with "+what, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return ok(s.last)
	})
}

// said is how many reports there were.
func (s *server) said() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.reports)
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// world is a host. Its methods are those of the modules that the drivers drive.
type world struct {
	mu     sync.Mutex
	there  []string          // "network a", "machine u", in the order in which they came
	events []string          // "+network a", "-machine u"
	broken map[string]string // what can't be made or removed, and why; # is how often it was tried
	tries  map[string]int
	hold   chan struct{} // not nil: machines get their places once it is closed
	hung   chan struct{} // not nil: who makes a volume waits until it is closed, whatever else is
	told   []string      // registries that endpoints heard of
}

func (w *world) change(what string, there bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tries == nil {
		w.tries = map[string]int{}
	}
	w.tries[what]++
	if text := w.broken[what]; text != "" {
		return errors.New(strings.ReplaceAll(text, "#", strconv.Itoa(w.tries[what])))
	}
	if slices.Contains(w.there, what) == there {
		return nil
	}
	if there {
		w.there = append(w.there, what)
		w.events = append(w.events, "+"+what)
	} else {
		w.there = slices.DeleteFunc(w.there, func(s string) bool { return s == what })
		w.events = append(w.events, "-"+what)
	}
	return nil
}

func (w *world) breaks(what, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = map[string]string{what: why}
}

func (w *world) tried(what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tries[what]
}

// heard is the registries of all states that endpoints were told of.
func (w *world) heard() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.told, " ")
}

func (w *world) list(kind string) (keys []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.there {
		if key, ok := strings.CutPrefix(t, kind+" "); ok {
			keys = append(keys, key)
		}
	}
	return keys
}

func (w *world) all() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(slices.Sorted(slices.Values(w.there)), ", ")
}

func (w *world) story() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.events, " ")
}

type worldNetworks struct{ *world }

func (w worldNetworks) Attach(_ context.Context, n wire.Network) error {
	return w.change("network "+n.ID, true)
}
func (w worldNetworks) Detach(_ context.Context, id string) error {
	return w.change("network "+id, false)
}
func (w worldNetworks) Attached() ([]string, error) { return w.list("network"), nil }

type worldPlaces struct{ *world }

func (w worldPlaces) AttachMachine(ctx context.Context, m wire.Machine) (netns string, err error) {
	if w.hold != nil {
		select {
		case <-w.hold:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	return "/netns/" + m.UID, nil
}
func (worldPlaces) DetachMachine(context.Context, string) error { return nil }
func (worldPlaces) Machines() ([]string, error)                 { return nil, nil }

type worldRunner struct{ *world }

func (worldRunner) FirstUID(m wire.Machine) (uint32, error) { return m.Spec.FirstUID, nil }
func (w worldRunner) Ensure(_ context.Context, m wire.Machine, _ string, _ wire.MachineKeyPairs) error {
	return w.change("machine "+m.UID, true)
}
func (w worldRunner) Remove(_ context.Context, uid string) error {
	return w.change("machine "+uid, false)
}
func (w worldRunner) List(context.Context) (all []wire.MachineReport, err error) {
	for _, uid := range w.list("machine") {
		all = append(all, wire.MachineReport{UID: uid, Running: true})
	}
	return all, nil
}

// worldVolumes has volumes, "volume u", and "attachment u/m".
type worldVolumes struct{ *world }

func (w worldVolumes) Ensure(_ context.Context, v wire.Volume) error {
	if w.hung != nil {
		<-w.hung
	}
	return w.change("volume "+v.UID, true)
}
func (w worldVolumes) Keep(_ context.Context, v wire.Volume) error {
	return w.change("kept "+v.UID, true)
}
func (w worldVolumes) Remove(_ context.Context, v wire.Volume) error {
	uid := v.UID
	return w.change("volume "+uid, false)
}
func (w worldVolumes) Leave() (kept []string, err error) { return w.list("volume"), nil }
func (w worldVolumes) List() (all []wire.VolumeReport, err error) {
	w.mu.Lock()
	away := w.broken["pool"]
	w.mu.Unlock()
	if away != "" {
		return nil, errors.New(away)
	}
	for _, uid := range w.list("volume") {
		all = append(all, wire.VolumeReport{UID: uid, NetworkID: "of-" + uid, Ready: true, SizeBytes: 10})
	}
	return all, nil
}
func (w worldVolumes) EnsurePool(context.Context, wire.Pool) error { return nil }
func (w worldVolumes) RemovePool(context.Context, wire.Pool) error { return nil }
func (w worldVolumes) Pools([]wire.Pool) []resource.Pool           { return []resource.Pool{{Name: "default"}} }
func (w worldVolumes) Attach(volume, machine string) error {
	return w.change("attachment "+volume+"/"+machine, true)
}
func (w worldVolumes) AttachShared(volume, machine string) error {
	return w.Attach(volume, machine)
}
func (worldVolumes) Imported(wire.Volume) (state, message string) { return wire.ImportBegun, "" }
func (w worldVolumes) Detach(volume, machine string) error {
	return w.change("attachment "+volume+"/"+machine, false)
}
func (w worldVolumes) Attached() (map[string][]wire.VolumeAttachment, error) {
	all := map[string][]wire.VolumeAttachment{}
	for _, key := range w.list("attachment") {
		volume, machine, _ := strings.Cut(key, "/")
		all[volume] = append(all[volume], wire.VolumeAttachment{MachineUID: machine})
	}
	return all, nil
}

type worldEndpoints struct{ *world }

func (w worldEndpoints) SetState(s *wire.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, s.Registry)
}
func (worldEndpoints) Open(context.Context, wire.Machine, string, string) error { return nil }
func (worldEndpoints) Close(string)                                             {}

// run runs an agent in dir until the test ends, or stop is called.
func run(t *testing.T, s *server, dir string, w *world, with ...func(*Agent)) (a *Agent, stop func() error) {
	t.Helper()
	leaf, key, err := s.ca.Issue(pki.Request{CommonName: "n1", Client: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := writeIdentity(dir, &identity{Server: s.URL, Name: "n1", Certificate: leaf, Key: key, CA: s.ca.CertPEM()}); err != nil {
		t.Fatal(err)
	}
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	machines := Machines(MachinesConfig{
		Log:       log,
		Client:    c,
		Networks:  worldPlaces{w},
		Runner:    worldRunner{w},
		Endpoints: worldEndpoints{w},
	})
	a = New(Config{
		Log:     log,
		Client:  c,
		Drivers: []Driver{Networks(worldNetworks{w}), Pools(worldVolumes{w}), Volumes(worldVolumes{w}), machines, Attachments(worldVolumes{w})},
		Facts:   func() wire.Report { return wire.Report{} },
		Heard:   worldEndpoints{w}.SetState,
	})
	a.pace, a.pages = flowcontrol.NewFakeAlwaysRateLimiter(), flowcontrol.NewFakeAlwaysRateLimiter() // or tests would wait for them
	for _, change := range with {
		change(a)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx, func() {}) }()
	stop = sync.OnceValue(func() error {
		defer c.http.CloseIdleConnections()
		cancel()
		return <-ended
	})
	t.Cleanup(func() { _ = stop() })
	return a, stop
}

func wantThere(t *testing.T, w *world, want string) {
	t.Helper()
	await(t, "there is "+want, func() bool { return w.all() == want })
}
