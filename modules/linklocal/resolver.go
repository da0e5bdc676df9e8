package linklocal

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	upstreamTimeout = 2 * time.Second
	// maxQueries is how many queries of one machine may wait for an upstream.
	maxQueries = 256
	// serverRest is how long a server that did not answer is asked only when all
	// others have failed too: else each name would wait for it.
	serverRest = 30 * time.Second
)

// silent remembers which servers did not answer. It is one machine's: what a tenant
// makes a server do counts for nobody else.
type silent struct {
	mu    sync.Mutex
	until map[netip.AddrPort]time.Time
}

// order puts the servers that rest behind those that don't.
func (s *silent) order(servers []netip.AddrPort, now time.Time) []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	rests := func(a netip.AddrPort) int {
		if now.Before(s.until[a]) {
			return 1
		}
		return 0
	}
	var out []netip.AddrPort
	out = append(out, servers...)
	slices.SortStableFunc(out, func(a, b netip.AddrPort) int { return rests(a) - rests(b) })
	// One question at a time finds out whether a server is back.
	if len(out) > 1 && !s.until[out[0]].IsZero() && rests(out[0]) == 0 {
		s.until[out[0]] = now.Add(upstreamTimeout)
	}
	return out
}

func (s *silent) note(server netip.AddrPort, answered bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case answered:
		delete(s.until, server)
	case len(s.until) < 16 || !s.until[server].IsZero(): // sites have three
		if s.until == nil {
			s.until = map[netip.AddrPort]time.Time{}
		}
		s.until[server] = now.Add(serverRest)
	}
}

// doorTTL is how long the front door's addresses may be kept: as long as CoreDNS
// keeps anything.
const doorTTL = 30

// resolver answers one machine's DNS queries for the names of the platform's front
// door, and forwards the others to the site's resolvers. It keeps nothing: CoreDNS, which
// asks for the pods, has a cache.
func (e *Endpoints) resolver() dns.Handler {
	slots, quiet := make(chan struct{}, maxQueries), &silent{}
	return dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			e.resolve(w, q, quiet)
		default:
			refuse(w, q, dns.RcodeServerFailure, "too many queries wait for an answer")
		}
	})
}

func (e *Endpoints) resolve(w dns.ResponseWriter, q *dns.Msg, quiet *silent) {
	if q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 {
		refuse(w, q, dns.RcodeNotImplemented, "only plain queries are forwarded")
		return
	}
	if kind := q.Question[0].Qtype; kind == dns.TypeAXFR || kind == dns.TypeIXFR {
		refuse(w, q, dns.RcodeRefused, "no zone transfers")
		return
	}
	state := e.state.Load()
	if state.Door.Has(q.Question[0].Name) {
		_ = w.WriteMsg(theDoor(q, state.Door.Addresses)) // who asked may be gone
		return
	}
	servers := state.UpstreamDNS
	if len(servers) == 0 {
		// Not "no such name", which would be a lie that gets cached. Refused, a
		// resolver gives up at once instead of asking again.
		refuse(w, q, dns.RcodeRefused, "no resolver is configured on this platform; names outside the cluster don't resolve")
		return
	}
	overTCP := w.RemoteAddr().Network() == "tcp"
	answer, err := e.exchange(servers, q, overTCP, quiet)
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

// theDoor is the answer for a name of the front door. The site's resolvers are not asked:
// there may be none, or they say an address before a router, from where there is no way
// back in. Of anything but IPv4 there is nothing, which is no error: some resolvers take
// one for the answer to both of their questions.
func theDoor(q *dns.Msg, addresses []netip.Addr) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.Authoritative, m.RecursionAvailable = true, true
	asked := q.Question[0]
	if asked.Qclass == dns.ClassINET && (asked.Qtype == dns.TypeA || asked.Qtype == dns.TypeANY) {
		for _, a := range addresses {
			m.Answer = append(m.Answer, &dns.A{A: a.AsSlice(),
				Hdr: dns.RR_Header{Name: asked.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: doorTTL}})
		}
	}
	if o := q.IsEdns0(); o != nil {
		m.SetEdns0(o.UDPSize(), o.Do())
	}
	return m
}

// exchange asks the servers in their order, those that were quiet lately last.
func (e *Endpoints) exchange(servers []netip.AddrPort, q *dns.Msg, overTCP bool, quiet *silent) (answer *dns.Msg, err error) {
	ask := q.Copy()
	ask.Id = dns.Id()
	for _, s := range quiet.order(servers, time.Now()) {
		c := &dns.Client{Net: "udp", Timeout: e.timeout, UDPSize: dns.MaxMsgSize}
		if overTCP {
			c.Net = "tcp"
		}
		ctx, cancel := context.WithTimeout(context.Background(), e.timeout)
		answer, _, err = c.ExchangeContext(ctx, ask, s.String())
		cancel()
		quiet.note(s, err == nil, time.Now())
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
