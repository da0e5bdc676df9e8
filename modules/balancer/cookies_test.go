package balancer

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"testing"
)

// wide are cookies that reach beyond web.acme.apps.example, with what may be left of them.
var wide = map[string]string{
	"a=b; Domain=apps.example":                                        "a=b",
	"a=b; domain=APPS.example; Path=/":                                "a=b; Path=/",
	"a=b;DOMAIN=.apps.example;Secure":                                 "a=b;Secure",
	"a=b; Domain=example":                                             "a=b",
	"a=b; Domain=acme.apps.example":                                   "a=b",
	"a=b; Domain=beta.apps.example":                                   "a=b",
	"a=b; Domain=xweb.acme.apps.example":                              "a=b",
	"a=b; Domain=web.acme.apps.example.":                              "a=b",
	"a=b; Domain=apps.example.":                                       "a=b",
	"a=b; Domain=..apps.example":                                      "a=b",
	"a=b; Domain=..web.acme.apps.example":                             "a=b",
	"a=b; Domain=\"apps.example\"":                                    "a=b",
	"a=b; Domain='apps.example'":                                      "a=b",
	"a=b; Domain = apps.example ":                                     "a=b",
	"a=b;\tDomain\t=\tapps.example":                                   "a=b",
	"a=b; Domain=web.acme.apps.example:443":                           "a=b",
	"a=b; Domain=apps.example,.web.acme.apps.example":                 "a=b",
	"a=b; Domain=apps.example; Domain=web.acme.apps.example":          "a=b; Domain=web.acme.apps.example",
	"a=b; Domain=web.acme.apps.example; Domain=apps.example":          "a=b; Domain=web.acme.apps.example",
	"a=b; Domain=apps.example; Domain=":                               "a=b",
	"a=b; Domain=; Domain=apps.example":                               "a=b",
	"a=b; Domain":                                                     "a=b",
	"a=\"b; Domain=apps.example\"":                                    "a=\"b",
	"a=\"b; Domain=apps.example; c\"; Path=/":                         "a=\"b; c\"; Path=/",
	"; Domain=apps.example":                                           "",
	"Domain=apps.example; Domain=apps.example":                        "Domain=apps.example",
	"a=b; Domain=apps.example=x":                                      "a=b",
	"a=b; Domain==apps.example":                                       "a=b",
	"a=b; Domain=xn--pps-8ia.example":                                 "a=b",
	"a=b; Domain=ａpps.example":                                        "a=b",
	"a=b; Domain=apps.ex%61mple":                                      "a=b",
	"a=b; Domain=apps.example; SameSite=None; Secure; Foo":            "a=b; SameSite=None; Secure; Foo",
	"__Secure-a=b; Secure; Domain=apps.example; Partitioned":          "__Secure-a=b; Secure; Partitioned",
	"a=b; Expires=Thu, 01 Jan 2099 00:00:00 GMT; Domain=apps.example": "a=b; Expires=Thu, 01 Jan 2099 00:00:00 GMT",
}

// narrow are those that are the app's own business.
var narrow = []string{
	"a=b", "a=b; Path=/; Secure; HttpOnly", "a=b; Domain=web.acme.apps.example", "a=b; Domain=.web.acme.apps.example", "a=b;domain=WEB.acme.apps.example",
	"a=b; Domain=hello.shop.web.acme.apps.example; Path=/", "a=b; Domain=shop.web.acme.apps.example", "Domain=apps.example", "domain=x; Path=/", "a=Domain=apps.example",
	"a=b; Path=/Domain=apps.example", "a=b; XDomain=apps.example", "=", "",
}

func TestNarrowCookie(t *testing.T) {
	const site = "web.acme." + domain
	if got := siteOf("acme/web/shop", domain); got != site {
		t.Errorf("the site is %s, want %s", got, site)
	}
	for cookie, want := range wide {
		if got, ok := narrowCookie(cookie, site); got != want || !ok {
			t.Errorf("%q became %q %v, want %q", cookie, got, ok, want)
		}
	}
	for _, cookie := range narrow {
		if got, ok := narrowCookie(cookie, site); got != cookie || !ok {
			t.Errorf("%q became %q %v", cookie, got, ok)
		}
	}
	for _, end := range []string{"\x00", "\r", "\n", "\x01", "\x0b", "\x0c", "\x1f", "\x7f"} {
		if got, ok := narrowCookie("a=b"+end+"; Domain="+domain, site); ok {
			t.Errorf("with a %q: %q is kept", end, got)
		}
	}
	for clears, want := range map[string]string{
		`"cookies"`: "", `"cache", "cookies", "storage"`: `"cache", "storage"`, `"*"`: `"cache", "storage", "executionContexts"`, `cookies`: "", `"clientHints"`: "", `"COOKIES"`: "", `"storage"`: `"storage"`,
	} {
		h := http.Header{"Clear-Site-Data": {clears}}
		if keepToSite(h, site); h.Get("Clear-Site-Data") != want || want == "" && len(h) > 0 {
			t.Errorf("%s became %q, want %q", clears, h, want)
		}
	}
}

// FuzzNarrowCookie reads what is left of a cookie as browsers do: at every semicolon.
func FuzzNarrowCookie(f *testing.F) {
	for cookie := range wide {
		f.Add(cookie)
	}
	for _, cookie := range narrow {
		f.Add(cookie)
	}
	const site = "web.acme." + domain
	f.Fuzz(func(t *testing.T, cookie string) {
		got, ok := narrowCookie(cookie, site)
		if !ok {
			return
		}
		if strings.ContainsAny(got, "\r\n\x00") {
			t.Errorf("%q became %q", cookie, got)
		}
		for i, attribute := range strings.Split(got, ";") {
			name, value, _ := strings.Cut(attribute, "=")
			value = strings.ToLower(strings.TrimLeft(strings.TrimSpace(value), "."))
			if i > 0 && strings.ToLower(strings.TrimSpace(name)) == "domain" && value != site && !strings.HasSuffix(value, "."+site) {
				t.Errorf("%q became %q, which is for %s", cookie, got, value)
			}
		}
		if again, ok := narrowCookie(got, site); again != got || !ok {
			t.Errorf("%q became %q, and that %q", cookie, got, again)
		}
	})
}

// TestCookies has an app set wide cookies in every part of an answer, by every way that
// a request can take.
func TestCookies(t *testing.T) {
	s, b := served(t, "127.0.0.2")
	const evil = "Set-Cookie: evil=1; Domain=" + domain + "\r\nset-cookie2: evil=1; Domain=" + domain + "\r\nCLEAR-site-data: \"cookies\"\r\n"
	answers := map[string]string{
		"/plain":    "HTTP/1.1 200 OK\r\n" + evil + "Content-Length: 2\r\n\r\nok",
		"/early":    "HTTP/1.1 103 Early Hints\r\nLink: </x.css>\r\n" + evil + "\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"/trailers": "HTTP/1.1 200 OK\r\nTrailer: Set-Cookie, X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n" + evil + "\r\n",
		"/sudden":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n" + evil + "\r\n",
		"/error":    "HTTP/1.1 500 Oh\r\n" + evil + "Content-Length: 2\r\n\r\nok",
		"/upgrade":  "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n" + evil + "\r\n",
	}
	s.rawPod("127.0.0.2", func(conn net.Conn, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(conn, answers[r.URL.Path])
		if r.URL.Path == "/upgrade" {
			conn.Close()
		}
	})
	check := func(what string, h http.Header) {
		t.Helper()
		for key, values := range h {
			if strings.Contains(strings.ToLower(key), "cookie") && !slices.Equal(values, []string{"evil=1"}) || key == "Clear-Site-Data" || key == "Set-Cookie2" {
				t.Errorf("%s: %s: %q", what, key, values)
			}
		}
	}
	for _, http2 := range []bool{false, true} {
		c := s.browser(b, http2)
		for path := range answers {
			for _, method := range []string{"GET", "POST", "HEAD", "DELETE"} {
				what := fmt.Sprintf("%s %s, HTTP/2 %v", method, path, http2)
				early := 0
				ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
					early++
					check(what+", 1xx", http.Header(h))
					return nil
				}})
				var body io.Reader
				if method == "POST" {
					body = strings.NewReader("x")
				}
				req, err := http.NewRequestWithContext(ctx, method, "https://"+hello+path, body)
				if err != nil {
					t.Fatal(err)
				}
				if path == "/upgrade" {
					if http2 || method != "GET" {
						continue
					}
					req.Header.Set("Connection", "Upgrade")
					req.Header.Set("Upgrade", "x")
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if path == "/upgrade" && resp.StatusCode != 101 {
					t.Errorf("%s: got %s", what, resp.Status)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				check(what, resp.Header)
				check(what+", trailer", resp.Trailer)
				if sum := resp.Trailer.Get("X-Sum"); strings.Contains("/trailers /sudden", path) && method != "HEAD" && sum != "7" {
					t.Errorf("%s: trailer is %v", what, resp.Trailer)
				}
				if path == "/plain" && resp.Header.Get("Set-Cookie") != "evil=1" || path == "/early" && early != 1 {
					t.Errorf("%s: got %v, %d early answers", what, resp.Header, early)
				}
			}
		}
	}
}

// forged are names by which a client could tell an app what only the balancer knows.
var forged = []string{
	"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Ssl", "X-Forwarded-Scheme",
	"X-Forwarded-Prefix", "X-Forwarded-Uri", "X-Forwarded-Method", "X-Forwarded-User", "X-Forwarded-Client-Cert", "X-Forwarded-By", "X-Forwarded", "X-Forwarded-A-Very-Long-Name-Of-What-Somebody-May-Trust",
	"X-Real-Ip", "True-Client-Ip", "X-Client-Ip", "Client-Ip", "X-Cluster-Client-Ip", "Cf-Connecting-Ip", "Fastly-Client-Ip", "X-Remote-Addr", "X-Original-Url", "X-Original-Host",
	"X-Original-Forwarded-For", "X-Rewrite-Url", "X-Host", "X-Http-Host-Override", "X-Scheme", "X-Url-Scheme", "Front-End-Https", "Client-Cert", "X-Envoy-External-Address", "Proxy",
	"X_forwarded_for", "X_Forwarded-For", "X-Forwarded_For", "X_real_ip", "Forwarded_", "_forwarded", "X_anything", "X.forwarded.for", "X~Forwarded~For", "X'real'ip", "X-Forwardedfor", "Xforwardedfor", "X--Forwarded--For",
}

func TestForgedHeaders(t *testing.T) {
	for _, key := range forged {
		if !isOurs(key) {
			t.Errorf("%s says something to apps", key)
		}
	}
	for _, key := range []string{"Host", "User-Agent", "Accept", "Cookie", "Authorization", "X-Requested-With", "X-Csrf-Token", "X-Http-Method-Override", "X-Request-Id", "Via", "Traceparent", "X-Api-Key", "Origin",
		"X-Real-Ip-Of-Printer", "Proxy-Status", "X-Forward-Thinking", "Forwarded-Elsewhere", "Sec-Fetch-Site", "Content-Type", "Te", "X-Amz-Date", ""} {
		if isOurs(key) {
			t.Errorf("%s does not reach apps", key)
		}
	}
	s, b := served(t, "127.0.0.2")
	got := make(chan http.Header, 1)
	s.rawPod("127.0.0.2", func(conn net.Conn, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		all := r.Header.Clone()
		for key, values := range r.Trailer {
			all["trailer "+key] = values
		}
		got <- all
		if r.Header.Get("Upgrade") != "" {
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			conn.Close()
			return
		}
		io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
	})
	for _, http2 := range []bool{false, true} {
		for what, change := range map[string]func(r *http.Request){
			"plain": func(r *http.Request) {}, "by the library": func(r *http.Request) { r.Header.Set("Te", "trailers") }, "upgrade": func(r *http.Request) { r.Header.Set("Connection", "Upgrade"); r.Header.Set("Upgrade", "x") },
			"trailers": func(r *http.Request) {
				r.Method, r.Body, r.ContentLength, r.Trailer = "POST", io.NopCloser(strings.NewReader("x")), -1, http.Header{}
				for _, key := range forged {
					r.Trailer[key] = []string{"evil"}
				}
			},
		} {
			req, err := http.NewRequest("GET", "https://"+hello+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, key := range forged {
				req.Header[key] = []string{"evil"}
			}
			req.Header.Set("X-Mine", "mine")
			if change(req); http2 && what == "upgrade" {
				continue
			}
			resp, err := s.browser(b, http2).Do(req)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			resp.Body.Close()
			h := <-got
			for key, values := range h {
				if slices.Contains(values, "evil") || strings.HasPrefix(key, "trailer ") {
					t.Errorf("HTTP/2 %v, %s: the app is told %s: %q", http2, what, key, values)
				}
			}
			if h.Get("X-Mine") != "mine" || h.Get("X-Forwarded-For") != "127.0.0.1" || h.Get("X-Forwarded-Host") != hello || h.Get("X-Forwarded-Proto") != "https" {
				t.Errorf("HTTP/2 %v, %s: the app is told %v", http2, what, h)
			}
		}
	}
}
