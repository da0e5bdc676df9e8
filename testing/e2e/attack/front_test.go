package attack

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/wait"
)

// wideDomains are what a cookie may be set for, so that a browser would send it to
// other tenants: %s is the platform's domain.
var wideDomains = []string{
	"Domain=%s", "domain=.%s", "DOMAIN=%s; Path=/", "Domain=acme.%s", "Domain=web.acme.%s", "Domain=.web.acme.%s", "Domain=shop.web.acme.%s", "Domain=beta.%s", "Domain=xops.beta.%s",
	"Domain=ops.beta.%[1]s; Domain=%[1]s", "Domain=%[1]s; Domain=", "Domain=..%s", "Domain =\t%s", "Domain=\"%s\"", "Domain=%s.", "Domain=%[1]s; Domain=%[1]s", "Domain=%s:443", "Domain=internal", "Domain=.internal", "Domain=*.%s",
	"Path=/; SameSite=None; Secure; Domain=%s", "Expires=Thu, 01 Jan 2099 00:00:00 GMT; Domain=%s", "Max-Age=999999;Domain=%s;HttpOnly", "Partitioned; Domain=%s", "Domain=%s; Domain=hello.shop.web.acme.%[1]s",
}

// forgedHeaders are those by which an app, or what stands before it, is told who asks.
var forgedHeaders = []string{
	"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Ssl", "X-Forwarded-Prefix", "X-Forwarded-User",
	"X-Forwarded-Client-Cert", "X-Real-Ip", "True-Client-Ip", "X-Client-Ip", "Client-Ip", "X-Cluster-Client-Ip", "Cf-Connecting-Ip", "Fastly-Client-Ip", "X-Original-Url", "X-Original-Host",
	"X-Original-Forwarded-For", "X-Rewrite-Url", "X-Host", "X-Scheme", "Front-End-Https", "Client-Cert", "X-Envoy-External-Address", "Proxy",
	"X_Forwarded_For", "X_Forwarded-For", "X-Forwarded_For", "X_Real_Ip", "X.Forwarded.For", "X-Forwardedfor", "x-forwarded-for", "PROXY",
}

// testFront has A's app set cookies for others, and has clients of A's app say that
// they are somebody else. What browsers make of a cookie is asked of a jar.
func testFront(t *testing.T, s *suite) {
	s.Must(t, dctest.Rival, "apps", "deploy", "echo", "--image", "tool:1", "--port", "8080", "--health-path", "/healthz", "--timeout", "5m")
	defer s.Must(t, dctest.Rival, "apps", "delete", "echo", "--yes", "--no-wait")
	const host = "echo.box.ops.beta." + datacenter.Domain
	for _, version := range []string{"HTTP/1.1", "HTTP/2"} {
		client := s.Client()
		if transport := client.Transport.(*http.Transport); version == "HTTP/1.1" {
			transport.ForceAttemptHTTP2 = false
			transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
		}
		f := &fronted{suite: s, client: client, url: "https://" + host, version: version}
		f.cookies(t)
		f.headers(t)
	}
}

type fronted struct {
	*suite
	client       *http.Client
	url, version string
}

func (f *fronted) get(ctx context.Context, path string, change func(*http.Request)) (*http.Response, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url+path, nil)
	if err != nil {
		return nil, nil, err
	}
	if change != nil {
		change(req)
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Proto != f.version && resp.Proto != f.version+".0" {
		return nil, nil, fmt.Errorf("%s %s", resp.Proto, resp.Status)
	}
	var told http.Header
	if path == "/headers" {
		err = json.NewDecoder(resp.Body).Decode(&told)
	}
	return resp, told, err
}

func (f *fronted) cookies(t *testing.T) {
	app, err := url.Parse(f.url)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := func(host string) *url.URL { return &url.URL{Scheme: "https", Host: host, Path: "/"} }
	sibling := elsewhere("other.box.ops.beta." + datacenter.Domain)
	others := []*url.URL{elsewhere(datacenter.AppHost), elsewhere(datacenter.Domain), elsewhere("web.acme." + datacenter.Domain), elsewhere("web.beta." + datacenter.Domain), elsewhere("beta." + datacenter.Domain)}
	set := func(attributes string) (string, *cookiejar.Jar, error) {
		jar, err := cookiejar.New(nil)
		if err != nil {
			return "", nil, err
		}
		resp, _, err := f.get(t.Context(), "/?cookie="+url.QueryEscape("planted=evil; "+attributes), nil)
		if err != nil {
			return "", nil, err
		}
		jar.SetCookies(app, resp.Cookies())
		return strings.Join(resp.Header["Set-Cookie"], " | "), jar, nil
	}
	_, jar, err := set("Domain=ops.beta." + datacenter.Domain)
	if err == nil && len(jar.Cookies(sibling)) != 1 {
		err = fmt.Errorf("the organization's other app gets %v", jar.Cookies(sibling))
	}
	if !f.control(t, "A's app sets a cookie for its own organization by "+f.version, err) {
		return
	}
	for _, wide := range wideDomains {
		attributes := wide
		if strings.Contains(wide, "%") {
			attributes = fmt.Sprintf(wide, datacenter.Domain)
		}
		got, jar, err := set(attributes)
		if !f.control(t, "A's app sets a cookie by "+f.version, err) {
			return
		}
		var sent []string
		for _, u := range others {
			if len(jar.Cookies(u)) > 0 {
				sent = append(sent, u.Host)
			}
		}
		f.record(t, attempt{What: "a cookie with " + attributes, From: "A's app by " + f.version, Want: "no browser sends it to others", Got: fmt.Sprintf("%q, sent to %q", got, sent), Blocked: len(sent) == 0})
	}
}

func (f *fronted) headers(t *testing.T) {
	_, told, err := f.get(t.Context(), "/headers", func(r *http.Request) { r.Header["X-Mine"] = []string{"mine"} })
	if err == nil && (told.Get("X-Mine") != "mine" || told.Get("X-Forwarded-For") == "" || told.Get("X-Forwarded-Proto") != "https") {
		err = fmt.Errorf("the app is told %v", told)
	}
	if !f.control(t, "a header of a client's own reaches the app by "+f.version, err) {
		return
	}
	source := told.Get("X-Forwarded-For")
	for _, key := range forgedHeaders {
		var told http.Header
		wait.For(t, wait.Patience, "the app answers", func(ctx context.Context) (err error) {
			_, told, err = f.get(ctx, "/headers", func(r *http.Request) { r.Header[key] = []string{"evil"} })
			return err
		})
		evil := told.Get("X-Forwarded-For") != source
		for _, values := range told {
			evil = evil || strings.Contains(strings.Join(values, ","), "evil")
		}
		f.record(t, attempt{What: "a header " + key, From: "a client of A's app, by " + f.version, Want: "the app is told who it really is", Got: fmt.Sprint(told), Blocked: !evil})
	}
}
