package linklocal

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// resolver forwards DNS queries of machines to the site's resolvers. It keeps
// nothing: CoreDNS, which asks for the pods, has a cache.
type resolver struct {
	upstreams atomic.Pointer[[]netip.AddrPort]
	timeout   time.Duration // of one question to an upstream
}

const (
	upstreamTimeout = 2 * time.Second
	// maxQueries is how many queries of one machine may wait for an upstream.
	maxQueries = 256
)

func newResolver() *resolver {
	r := &resolver{timeout: upstreamTimeout}
	r.setUpstreams(nil)
	return r
}

func (r *resolver) setUpstreams(servers []netip.AddrPort) {
	s := slices.Clone(servers)
	r.upstreams.Store(&s)
}

// forMachine is a handler with the limits of one machine.
func (r *resolver) forMachine() dns.Handler {
	slots := make(chan struct{}, maxQueries)
	return dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			refuse(w, q, dns.RcodeServerFailure, "too many queries wait for an answer")
			return
		}
		r.serve(w, q)
	})
}

func (r *resolver) serve(w dns.ResponseWriter, q *dns.Msg) {
	if q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 {
		refuse(w, q, dns.RcodeNotImplemented, "only plain queries are forwarded")
		return
	}
	switch q.Question[0].Qtype {
	case dns.TypeAXFR, dns.TypeIXFR:
		refuse(w, q, dns.RcodeRefused, "no zone transfers")
		return
	}
	servers := *r.upstreams.Load()
	if len(servers) == 0 {
		// Not "no such name", which would be a lie that gets cached. Refused, a
		// resolver gives up at once instead of asking again.
		refuse(w, q, dns.RcodeRefused, "no resolver is configured on this platform; names outside the cluster don't resolve")
		return
	}
	overTCP := w.RemoteAddr().Network() == "tcp"
	answer, err := r.exchange(servers, q, overTCP)
	if err != nil {
		refuse(w, q, dns.RcodeServerFailure, "no resolver answered")
		return
	}
	answer.Id = q.Id
	if !overTCP {
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = max(size, int(o.UDPSize()))
		}
		answer.Truncate(size)
	}
	_ = w.WriteMsg(answer) // who asked may be gone
}

// exchange asks the servers in their order.
func (r *resolver) exchange(servers []netip.AddrPort, q *dns.Msg, overTCP bool) (answer *dns.Msg, err error) {
	ask := q.Copy()
	ask.Id = dns.Id()
	for _, s := range servers {
		c := &dns.Client{Net: "udp", Timeout: r.timeout, UDPSize: dns.MaxMsgSize}
		if overTCP {
			c.Net = "tcp"
		}
		ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
		answer, _, err = c.ExchangeContext(ctx, ask, s.String())
		cancel()
		if err == nil && answer.Rcode != dns.RcodeServerFailure {
			return answer, nil
		}
	}
	return answer, err
}

// refuse answers with a code and the reason for people, where the one who asks
// can take one.
func refuse(w dns.ResponseWriter, q *dns.Msg, code int, reason string) {
	m := new(dns.Msg)
	m.SetRcode(q, code)
	if q.IsEdns0() != nil {
		m.SetEdns0(1232, false)
		o := m.IsEdns0()
		o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeOther, ExtraText: reason})
	}
	_ = w.WriteMsg(m)
}

func namespaceInode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}
