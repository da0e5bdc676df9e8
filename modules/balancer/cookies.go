package balancer

import (
	"net/http"
	"strings"
)

// All apps of all tenants are below one domain. A browser takes cookies from a host
// for every domain above it, unless that is on the public suffix list, and sends
// them to all that is below: one tenant's app could give every other a session of its
// choice, or more cookies than a request may carry. So an answer tells a browser
// nothing that reaches beyond the organization whose app it is.
//
// What a page's own script sets is not seen here: the README says how operators make
// browsers know.

// siteOf is the widest domain that an app of a workspace may set cookies for.
func siteOf(workspace, domain string) string {
	parts := strings.Split(workspace, "/")
	if len(parts) != 3 {
		return workspace // the domain of nobody
	}
	return parts[1] + "." + parts[0] + "." + domain
}

// keepToSite narrows what an answer's header tells a browser about other hosts than
// its own. site is the widest domain that it may speak of.
func keepToSite(h http.Header, site string) {
	delete(h, "Set-Cookie2") // RFC 2965, which nobody needs, has its own rules
	if cookies := h["Set-Cookie"]; len(cookies) > 0 {
		kept := make([]string, 0, len(cookies))
		for _, c := range cookies {
			if c, ok := narrowCookie(c, site); ok {
				kept = append(kept, c)
			}
		}
		set(h, "Set-Cookie", kept)
	}
	if clears := h["Clear-Site-Data"]; len(clears) > 0 {
		set(h, "Clear-Site-Data", ownData(clears))
	}
}

func set(h http.Header, key string, values []string) {
	if h[key] = values; len(values) == 0 {
		delete(h, key)
	}
}

// keepTrailers drops what no browser takes from a trailer; others might.
func keepTrailers(h http.Header) {
	for _, key := range []string{"Set-Cookie", "Set-Cookie2", "Clear-Site-Data"} {
		delete(h, key)
	}
}

// narrowCookie is a Set-Cookie without the Domain attributes that reach beyond
// site: such a cookie is the host's alone. Dropping it whole, as browsers do for
// public suffixes, would break the apps that set a domain for no reason. False: the
// cookie has bytes by which browsers don't agree on where it ends.
func narrowCookie(cookie, site string) (string, bool) {
	for i := range len(cookie) {
		if c := cookie[i]; c < ' ' && c != '\t' || c == 0x7f {
			return "", false
		}
	}
	if !strings.Contains(cookie, ";") {
		return cookie, true
	}
	// Browsers end an attribute at every semicolon, also within quotes, and take the
	// last of several: none may be too wide.
	pair, rest, _ := strings.Cut(cookie, ";")
	kept := []string{pair} // its name may be domain, too
	for attribute := range strings.SplitSeq(rest, ";") {
		name, value, _ := strings.Cut(attribute, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "domain") || withinSite(value, site) {
			kept = append(kept, attribute)
		}
	}
	return strings.Join(kept, ";"), true
}

// withinSite says whether the value of a Domain attribute is site or a host below it,
// written so that nobody can read it otherwise.
func withinSite(value, site string) bool {
	value = strings.ToLower(strings.TrimPrefix(strings.Trim(value, " \t"), "."))
	host, ok := canonicalHost(value)
	return ok && host == value && (host == site || strings.HasSuffix(host, "."+site))
}

// ownData leaves of a Clear-Site-Data what browsers clear for this origin only. They
// clear cookies for the whole domain below a public suffix: everybody's.
func ownData(values []string) (kept []string) {
	for _, list := range values {
		for kind := range strings.SplitSeq(list, ",") {
			switch kind = strings.TrimSpace(kind); kind {
			case `"cache"`, `"storage"`, `"executionContexts"`, `"prefetchCache"`, `"prerenderCache"`:
				kept = append(kept, kind)
			case `"*"`:
				kept = append(kept, `"cache"`, `"storage"`, `"executionContexts"`)
			}
		}
	}
	if len(kept) > 0 {
		kept = []string{strings.Join(kept, ", ")}
	}
	return kept
}
