package linklocal

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// TestDoor knocks at the registry inside a machine with everything that is no
// pull: none of it reaches the platform's registry, where passwords are checked.
func TestDoor(t *testing.T) {
	passed := false
	rest := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { passed = true; w.WriteHeader(http.StatusTeapot) })
	door := route(payloadImages{t.TempDir()}, rest)
	knock := func(method, target, body string) int {
		passed = false
		r := httptest.NewRequest(method, "http://169.254.20.10:5000/", strings.NewReader(body))
		at, err := url.PathUnescape(target) // not url.Parse, which takes dots out
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Path, r.URL.RawQuery, _ = strings.Cut(at, "?")
		if body != "" {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		w := httptest.NewRecorder()
		door.ServeHTTP(w, r)
		return w.Code
	}
	const form = "grant_type=password&username=owner@acme.example&password=correct+horse+battery"
	for _, target := range []string{"/token", "/token/", "//token", "/./token", "/v2/../token", "/v2/%2e%2e/token", "/v2/x/../../token", "/v2//../token",
		"/V2/token", "/v2token", "/v2./token", "/", "", "/v1/login", "/v2/../v1/login", "/debug/pprof/", "/metrics", "/v2/..", "/v2/.", "/v2//", "/v2/a//manifests/1"} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "OPTIONS", "CONNECT"} {
			if code := knock(method, target, form); passed || code != http.StatusNotFound {
				t.Errorf("%s %s: %d, passed %v", method, target, code, passed)
			}
		}
	}
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "GETX", "PROPFIND"} {
		for _, target := range []string{"/v2/", "/v2/acme/web/tool/blobs/uploads/", "/v2/acme/web/tool/manifests/1", "/v2/token"} {
			if code := knock(method, target, form); passed || code != http.StatusMethodNotAllowed {
				t.Errorf("%s %s: %d, passed %v", method, target, code, passed)
			}
		}
	}
	for _, target := range []string{"/v2/acme/web/tool/manifests/1", "/v2/acme/web/tool/tags/list?n=5", "/v2/library/x/manifests/1?ns=docker.io", "/v2/?ns=docker.io", "/v2/_catalog"} {
		for _, method := range []string{"GET", "HEAD"} {
			if code := knock(method, target, ""); !passed {
				t.Errorf("%s %s does not pass: %d", method, target, code)
			}
		}
	}
}
