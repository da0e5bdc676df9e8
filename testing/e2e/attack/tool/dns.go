package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/multipaas/multipaas/testing/e2e/attempt"
)

// ask sends questions "SERVER/NETWORK/TYPE/NAME", all at once, and prints a line for
// each: the question, the response code and the records of the answer.
func ask(ctx context.Context, questions []string) {
	attempt.Each(questions, func(q string) string {
		f := strings.SplitN(q, "/", 4)
		if len(f) != 4 {
			return "unknown question"
		}
		kind, ok := dns.StringToType[f[2]]
		if !ok {
			return "unknown type"
		}
		m := new(dns.Msg)
		m.SetQuestion(dns.Fqdn(f[3]), kind)
		m.SetEdns0(1232, false)
		if kind == dns.TypeIXFR {
			m.SetIxfr(dns.Fqdn(f[3]), 1, ".", ".")
		}
		if strings.HasSuffix(f[3], ".bind") {
			m.Question[0].Qclass = dns.ClassCHAOS
		}
		c := &dns.Client{Net: f[1], Timeout: 10 * time.Second}
		r, _, err := c.ExchangeContext(ctx, m, f[0])
		if err != nil {
			return "none " + err.Error()
		}
		var records []string
		for _, rr := range r.Answer {
			records = append(records, strings.Join(strings.Fields(rr.String()), " "))
		}
		return fmt.Sprintf("%s %d bytes %s", dns.RcodeToString[r.Rcode], r.Len(), strings.Join(records, "; "))
	})
}
