package policy

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// span is a range of numbers, both ends in it: of IPv4 addresses, or of ports.
type span struct{ from, to uint32 }

const highest = 1<<32 - 1 // 255.255.255.255

// everything says that the spans leave nothing out of 0..top.
func everything(spans []span, top uint32) bool {
	return len(spans) == 1 && spans[0] == span{0, top}
}

func contains(spans []span, n uint32) bool {
	return slices.ContainsFunc(spans, func(s span) bool { return s.from <= n && n <= s.to })
}

// merge sorts spans and joins what overlaps or touches: nft refuses sets whose
// ranges overlap.
func merge(spans []span) []span {
	spans = slices.SortedFunc(slices.Values(spans), func(a, b span) int { return cmp.Compare(a.from, b.from) })
	merged := spans[:0]
	for _, s := range spans {
		last := len(merged) - 1
		if last >= 0 && (s.from <= merged[last].to || s.from == merged[last].to+1) {
			merged[last].to = max(merged[last].to, s.to)
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

// without takes holes out of a span.
func without(s span, holes []span) []span {
	var left []span
	for _, h := range merge(holes) {
		if h.to < s.from || h.from > s.to {
			continue
		}
		if h.from > s.from {
			left = append(left, span{s.from, h.from - 1})
		}
		if h.to >= s.to {
			return left
		}
		s.from = h.to + 1
	}
	return append(left, s)
}

// block is the span of a CIDR; false for IPv6, which workspaces don't have.
func block(cidr string) (s span, ok bool, err error) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil || !p.Addr().Is4() {
		return s, false, err
	}
	first := number(p.Masked().Addr())
	return span{first, first | uint32(uint64(1)<<(32-p.Bits())-1)}, true, nil
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) string {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b).String()
}

func port(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// braces is an anonymous set of nft.
func braces(spans []span, print func(uint32) string) string {
	all := make([]string, len(spans))
	for i, s := range spans {
		all[i] = print(s.from)
		if s.to != s.from {
			all[i] += "-" + print(s.to)
		}
	}
	return "{ " + strings.Join(all, ", ") + " }"
}
