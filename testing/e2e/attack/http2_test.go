package attack

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
)

const (
	// trickWithin is for one connection of an attacker: what is still being taken
	// then goes on being taken, and was enough to see what it costs.
	trickWithin = 8 * time.Second
	// trickMemory is what the server and the plane may take more than before the
	// first trick with them. One connection is owed 250 streams with 64 KiB of header
	// each and as much in buffers; the rest is what Go's collector leaves for later.
	trickMemory = 256 << 20
)

// front is a port that speaks HTTP/2 with everybody.
type front struct {
	what          string
	address, name string // name is TLS's, and the request's authority
	path, token   string
	plane         string // id of the workspace behind it, if it is a plane's
	tls           *tls.Config
}

// testHTTP2 speaks HTTP/2 as no browser does, frame by frame, with everybody who
// listens, while B goes on. For each trick: the server's and the plane's memory stays
// bounded, and the next honest request is answered.
func testHTTP2(t *testing.T, s *suite) {
	a := s.people(t)
	w := &waste{suite: s, id: s.workspaceID(t, dctest.Rival, "box"), by: s.newBystander(t)}
	from := w.anotherAddress(t)
	trusted, unknown := &tls.Config{RootCAs: s.Pool}, &tls.Config{InsecureSkipVerify: true} // a plane's certificate is its own authority's
	at := func(port string) string { return net.JoinHostPort(s.Server.Address().String(), port) }
	planeA, planeB := s.plane(t, a, ownerA, "beta/ops/box"), s.plane(t, a, ownerB, "acme/web/shop")
	for _, two := range [][]front{{
		{"the platform's API", at("7443"), s.Server.Address().String(), "/v1/openapi.json", "", "", trusted},
		{"the balancer", at("443"), datacenter.AppHost, "/", "", "", trusted},
	}, {
		{"A's plane", at("6443"), planeA.name, "/version", planeA.token, w.id, unknown},
		{"B's plane, as nobody", at("6443"), planeB.name, "/version", "", s.shop, unknown},
	}} {
		w.by.during(t, "frames of HTTP/2 to "+two[0].what+" and to "+two[1].what, "one address outside", func() {
			for _, f := range two {
				began := time.Now()
				x := &framing{waste: w, front: f, from: from}
				err := x.honest(t)
				if err == nil && x.taken() < 32<<20 {
					err = fmt.Errorf("the memory that is taken is unknown: %d bytes", x.taken())
				}
				if !s.control(t, "an honest request by hand-made frames is answered by "+f.what, err) {
					continue
				}
				x.before = x.taken()
				for _, trick := range tricks {
					x.try(t, trick)
				}
				t.Logf("%s took %s", f.what, time.Since(began).Round(100*time.Millisecond))
			}
		})
	}
}

// framing is one front being tried.
type framing struct {
	*waste
	front
	from   netip.Addr
	before int // bytes that were taken before the first trick: what each leaves behind adds up
}

// trick is what is done on one connection.
type trick struct {
	what string
	// want is what must become of the connection: "ended" for what HTTP/2 forbids,
	// "" if it may go on.
	want string
	do   func(c *framed)
}

// framed is a connection whose other side speaks HTTP/2. Errors of writing stop
// a trick: the other side has had enough.
type framed struct {
	*http2.Framer
	front
	conn   *tls.Conn
	out    *bufio.Writer
	header bytes.Buffer
	enc    *hpack.Encoder
	hush   bool // answers aren't read
	err    error
	next   uint32 // stream

	read         sync.WaitGroup
	mu           sync.Mutex
	statuses     map[string]int
	goAway       string
	ended        error
	resets, acks int
	settled      chan struct{} // the last PING was answered, or the connection is over
	settle       func()
}

// last is in the PING that follows everything else.
var last = [8]byte{'t', 'h', 'e', ' ', 'l', 'a', 's', 't'}

// enough ends a trick whose connection is over.
type enough struct{}

func (c *framed) must(err error) {
	if err != nil {
		c.err = err
		panic(enough{})
	}
}

func (c *framed) flush() { c.must(c.out.Flush()) }

// dial opens a connection and says hello.
func (x *framing) dial(t *testing.T, settings ...http2.Setting) (*framed, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	config := x.tls.Clone()
	config.ServerName, config.NextProtos = x.name, []string{"h2"}
	d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: x.from.AsSlice()}}, Config: config}
	conn, err := d.DialContext(ctx, "tcp", x.address)
	if err != nil {
		return nil, err
	}
	c := &framed{front: x.front, conn: conn.(*tls.Conn), out: bufio.NewWriterSize(conn, 64<<10), next: 1, statuses: map[string]int{}, settled: make(chan struct{})}
	c.settle = sync.OnceFunc(func() { close(c.settled) })
	if p := c.conn.ConnectionState().NegotiatedProtocol; p != "h2" {
		conn.Close()
		return nil, fmt.Errorf("it speaks %q", p)
	}
	c.Framer = http2.NewFramer(c.out, conn)
	c.AllowIllegalWrites = true
	c.enc = hpack.NewEncoder(&c.header)
	_, err = io.WriteString(c.out, http2.ClientPreface)
	err = errors.Join(err, c.WriteSettings(settings...), c.out.Flush(), conn.SetDeadline(time.Now().Add(trickWithin)))
	if err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// listen reads what comes until the connection is over.
func (c *framed) listen() {
	c.read.Go(func() {
		dec := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
			if f.Name == ":status" {
				c.statuses[f.Value]++
			}
		})
		for {
			frame, err := c.ReadFrame()
			c.mu.Lock()
			switch f := frame.(type) {
			case *http2.HeadersFrame:
				_, _ = dec.Write(f.HeaderBlockFragment())
			case *http2.GoAwayFrame:
				// The server closes a second later, so that this arrives.
				if c.goAway = f.ErrCode.String(); f.ErrCode != http2.ErrCodeNo {
					c.settle()
				}
			case *http2.RSTStreamFrame:
				c.resets++
			case *http2.SettingsFrame:
				if f.IsAck() {
					c.acks++
				}
			case *http2.PingFrame:
				c.acks++
				if f.IsAck() && f.Data == last {
					c.settle()
				}
			}
			if err != nil {
				c.ended = err
			}
			c.mu.Unlock()
			if err != nil {
				c.settle()
				return
			}
		}
	})
}

// over waits until the other side has ended the connection, if it shall, or has
// taken everything, and says how it went.
func (c *framed) over(shall bool) (ended bool, fate string) {
	patience := trickWithin
	if shall {
		patience = time.Minute // it costs nothing where it does
	}
	_ = c.conn.SetDeadline(time.Now().Add(patience))
	if c.hush { // everything that was waiting is read now
		c.listen()
	}
	if !shall && (c.WritePing(false, last) != nil || c.out.Flush() != nil) {
		c.settle() // it is over
	}
	select {
	case <-c.settled:
	case <-time.After(patience):
	}
	_ = c.conn.SetDeadline(time.Now())
	c.read.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	ended = c.goAway != "" && c.goAway != http2.ErrCodeNo.String() || !errors.Is(c.ended, os.ErrDeadlineExceeded)
	fate = fmt.Sprintf("answers %v, %d resets, %d acks", c.statuses, c.resets, c.acks)
	if c.goAway != "" {
		fate += ", GOAWAY " + c.goAway
	}
	if !errors.Is(c.ended, os.ErrDeadlineExceeded) {
		fate += ", " + c.ended.Error()
	}
	if c.err != nil {
		fate += "; writing: " + c.err.Error()
	}
	return ended, fate
}

// fields are a request's header in HPACK, with more fields.
func (c *framed) fields(method string, more ...hpack.HeaderField) []byte {
	c.header.Reset()
	all := []hpack.HeaderField{{Name: ":method", Value: method}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: c.name}, {Name: ":path", Value: c.path}}
	if c.token != "" {
		all = append(all, hpack.HeaderField{Name: "authorization", Value: "Bearer " + c.token, Sensitive: true})
	}
	for _, f := range append(all, more...) {
		c.must(c.enc.WriteField(f))
	}
	return c.header.Bytes()
}

// ask begins a request on the next stream and returns that.
func (c *framed) ask(method string, end bool, more ...hpack.HeaderField) uint32 {
	id := c.next
	c.next += 2
	c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.fields(method, more...), EndHeaders: true, EndStream: end}))
	return id
}

// times does something n times and sends it in heaps.
func (c *framed) times(n int, do func(i int)) {
	for i := range n {
		do(i)
		if i%64 == 63 {
			c.flush()
		}
	}
	c.flush()
}

// perform does a trick until it is done or the other side has had enough.
func (c *framed) perform(do func(c *framed)) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(enough); !ok {
				panic(r)
			}
		}
	}()
	do(c)
	c.flush()
}

// honest makes one plain request by the same means.
func (x *framing) honest(t *testing.T) error {
	t.Helper()
	c, err := x.dial(t)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	c.listen()
	c.perform(func(c *framed) { c.ask(http.MethodGet, true) })
	for end := time.Now().Add(platformWithin); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		c.mu.Lock()
		n, ended := len(c.statuses), c.ended
		// 429: an address that asks more than its share is told so at once.
		fine := c.statuses["200"] == 1 || c.statuses["429"] == 1 || c.statuses["401"] == 1 && x.token == ""
		c.mu.Unlock()
		if n > 0 && fine {
			return nil
		}
		if n > 0 || ended != nil {
			break
		}
	}
	_, fate := c.over(false)
	return errors.New(fate)
}

// try does one trick and records what it came to.
func (x *framing) try(t *testing.T, tr trick) {
	t.Helper()
	most := 0
	stop := x.watch(&most, x.taken)
	c, err := x.dial(t)
	if err != nil {
		stop()
		x.control(t, tr.what+" at "+x.what, err)
		return
	}
	defer c.conn.Close()
	if c.hush = strings.Contains(tr.what, "unread"); !c.hush {
		c.listen()
	}
	began := time.Now()
	c.perform(tr.do)
	ended, fate := c.over(tr.want != "")
	took := time.Since(began).Round(time.Millisecond)
	next := time.Now()
	err = x.honest(t)
	answered := time.Since(next).Round(time.Millisecond)
	stop()
	more := max(most, x.taken()) - x.before
	want := fmt.Sprintf("at most %d MiB, and the next request answered within %s", trickMemory>>20, platformWithin)
	if tr.want != "" {
		want = "the connection is ended; " + want
	}
	x.record(t, attempt{What: tr.what + " at " + x.what, From: "one address outside", Want: want,
		Got:     fmt.Sprintf("%s in %s; %d MiB more; next request after %s: %v", fate, took, more>>20, answered, err),
		Blocked: err == nil && more <= trickMemory && (tr.want == "" || ended)})
}

// taken is what the server and the plane behind the front take of memory.
func (x *framing) taken() int {
	st, err := status.Fetch(context.Background(), x.Server.Root("run", "multipaas", "status.sock"))
	if err != nil {
		return 0
	}
	n := residentOf(x.Server.Root("proc", strconv.Itoa(st.PID), "status"))
	if x.plane != "" {
		n += residentOf(x.Server.Root("proc", x.planeProcess(x.plane), "status"))
	}
	return n
}

// residentOf is the anonymous memory of a process, by its file in /proc.
func residentOf(file string) int {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssAnon:" {
			n, _ := strconv.Atoi(f[1])
			return n << 10
		}
	}
	return 0
}

// many is how often a frame is sent.
func many(n int) int {
	if long() {
		return 20 * n
	}
	return n
}

var tricks = []trick{
	{"rapid reset: streams opened and cancelled at once", "", func(c *framed) {
		c.times(many(3000), func(int) { id := c.ask(http.MethodGet, true); c.must(c.WriteRSTStream(id, http2.ErrCodeCancel)) })
	}},
	{"streams opened and ended by a wrong window, so that the server resets them", "", func(c *framed) {
		c.times(many(2000), func(int) { id := c.ask(http.MethodGet, true); c.must(c.WriteWindowUpdate(id, 0)) })
	}},
	{"streams without end, none cancelled", "", func(c *framed) {
		c.times(many(1000), func(int) { c.ask(http.MethodPost, false) })
	}},
	{"CONTINUATION without end", "ended", func(c *framed) {
		block := bytes.Repeat([]byte{0x00, 0x01, 'a', 0x01, 'b'}, 3000)
		c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(http.MethodGet), EndStream: true}))
		c.times(4000, func(int) { c.must(c.WriteContinuation(1, false, block)) })
	}},
	{"CONTINUATION that is empty, without end", "", func(c *framed) {
		c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(http.MethodGet), EndStream: true}))
		c.times(many(40_000), func(int) { c.must(c.WriteContinuation(1, false, nil)) })
	}},
	{"a header of 4 MB", "", func(c *framed) {
		block := bytes.Clone(c.fields(http.MethodGet))
		for i := range 1000 {
			c.header.Reset()
			c.must(c.enc.WriteField(hpack.HeaderField{Name: "x-" + strconv.Itoa(i), Value: strings.Repeat("*", 4000), Sensitive: true}))
			block = append(block, c.header.Bytes()...)
		}
		c.headers(1, block)
	}},
	{"a header that HPACK blows up, 64 MB of 16 KB", "", func(c *framed) {
		block := bytes.Clone(c.fields(http.MethodGet, hpack.HeaderField{Name: "x", Value: strings.Repeat("x", 4000)}))
		c.headers(1, append(block, bytes.Repeat([]byte{0x80 | 62}, 16<<10)...)) // 62 is what was added last
	}},
	{"250 streams with a header that HPACK blows up, 56 KB of 14 bytes", "", func(c *framed) {
		// Less than the server takes, so each of them is a request that is under way.
		c.times(250, func(i int) {
			block := c.fields(http.MethodPost, hpack.HeaderField{Name: "x", Value: strings.Repeat("x", 4000)})
			c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: append(bytes.Clone(block), bytes.Repeat([]byte{0x80 | 62}, 13)...), EndHeaders: true}))
		})
	}},
	{"HPACK with a table of 4 GB", "", func(c *framed) {
		c.must(c.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 1<<32 - 1}))
		c.times(many(500), func(int) { c.ask(http.MethodGet, true) })
	}},
	{"HPACK that names an entry that is not there", "ended", func(c *framed) { c.headers(1, append(bytes.Clone(c.fields(http.MethodGet)), 0xff, 0xff, 0xff, 0x7f)) }},
	{"SETTINGS without end, their answers unread", "", func(c *framed) {
		c.times(many(40_000), func(int) { c.must(c.WriteSettings()) })
	}},
	{"SETTINGS with 2000 values each", "", func(c *framed) {
		all := make([]http2.Setting, 2000)
		for i := range all {
			all[i] = http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: uint32(i)}
		}
		c.times(many(400), func(int) { c.must(c.WriteSettings(all...)) })
	}},
	{"PING without end, their answers unread", "", func(c *framed) {
		c.times(many(40_000), func(i int) { c.must(c.WritePing(false, [8]byte{byte(i)})) })
	}},
	{"PRIORITY without end", "", func(c *framed) {
		c.times(many(20_000), func(i int) {
			c.must(c.WritePriority(uint32(2*(i%5000)+1), http2.PriorityParam{StreamDep: uint32(2*(i*7%5000) + 3), Weight: uint8(i), Exclusive: true}))
		})
	}},
	{"DATA that is empty, without end", "", func(c *framed) {
		id := c.ask(http.MethodPost, false)
		c.times(many(40_000), func(int) { c.must(c.WriteData(id, false, nil)) })
	}},
	{"250 answers that a window of nothing holds back", "", func(c *framed) {
		c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
		c.times(250, func(int) { c.ask(http.MethodGet, true) })
	}},
	{"250 answers by windows of one byte", "", func(c *framed) {
		c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
		c.times(250, func(int) { c.ask(http.MethodGet, true) })
		c.times(many(20_000), func(i int) { c.must(c.WriteWindowUpdate(uint32(2*(i%250)+1), 1)) })
	}},
	{"windows of 250 streams changed by SETTINGS, again and again", "", func(c *framed) {
		c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
		c.times(200, func(int) { c.ask(http.MethodGet, true) })
		c.times(many(4000), func(i int) {
			c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i % 2)}))
		})
	}},
	{"a window of more than 2^31", "ended", func(c *framed) { c.must(c.WriteWindowUpdate(0, 1<<31-1)); c.must(c.WriteWindowUpdate(0, 1<<31-1)) }},
	{"a window that grows by nothing", "ended", func(c *framed) { c.must(c.WriteWindowUpdate(0, 0)) }},
	{"an initial window of more than 2^31", "ended", func(c *framed) {
		c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}))
	}},
	{"frames of no size", "ended", func(c *framed) { c.must(c.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 0})) }},
	{"a frame of 16 MB", "ended", func(c *framed) { c.must(c.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<24-1))) }},
	{"DATA of no stream", "ended", func(c *framed) { c.must(c.WriteData(0, true, []byte("x"))) }},
	{"DATA of a stream that was never opened", "ended", func(c *framed) { c.must(c.WriteData(77, true, []byte("x"))) }},
	{"a reset of a stream that was never opened", "ended", func(c *framed) { c.must(c.WriteRSTStream(77, http2.ErrCodeCancel)) }},
	{"a stream of the server's", "ended", func(c *framed) { c.next = 2; c.ask(http.MethodGet, true) }},
	{"streams that go backwards", "ended", func(c *framed) { c.next = 9; c.ask(http.MethodGet, true); c.next = 3; c.ask(http.MethodGet, true) }},
	{"a promise to the server", "ended", func(c *framed) {
		c.must(c.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: c.fields(http.MethodGet), EndHeaders: true}))
	}},
	{"another frame within a header", "ended", func(c *framed) {
		c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(http.MethodGet)}))
		c.must(c.WritePing(false, [8]byte{}))
	}},
	{"padding longer than its frame", "ended", func(c *framed) { c.must(c.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{255, 1})) }},
	{"more body than the window allows", "", func(c *framed) {
		id := c.ask(http.MethodPost, false)
		c.times(200, func(int) { c.must(c.WriteData(id, false, make([]byte, 16<<10))) })
	}},
}

// headers sends one header, in as many frames as it takes.
func (c *framed) headers(id uint32, block []byte) {
	const size = 16 << 10
	first := block[:min(size, len(block))]
	block = block[len(first):]
	c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: true, EndHeaders: len(block) == 0}))
	for len(block) > 0 {
		part := block[:min(size, len(block))]
		block = block[len(part):]
		c.must(c.WriteContinuation(id, len(block) == 0, part))
		c.flush()
	}
}
