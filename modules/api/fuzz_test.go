package api_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// FuzzBodies sends what is no request: it is refused, never an internal error,
// and never in the way of the next one.
func FuzzBodies(f *testing.F) {
	for _, c := range samples() {
		f.Add(c.method, c.path, c.body, "application/json")
	}
	f.Add("PUT", inShop, `{"spec":{"machines":1e999}}`, "")
	f.Add("PUT", inShop, strings.Repeat(`[`, 20000), "application/json")
	f.Add("PATCH", inShop, `{"spec":null}`, "application/merge-patch+json")
	f.Add("PUT", inShop+"/apps/hello", `{"spec":{"env":{"":""},"image":"\u0000"}}`, "text/plain; charset=\xff")
	f.Add("GET", "/v1/tasks?after=%00&limit=-1", "", "")
	f.Add("DELETE", inWeb+"/images/a%2Fb%2F..", "", "")
	s := newSite(f) // one for all: a store each would take most of the time
	s.people()
	f.Fuzz(func(t *testing.T, method, path, body, contentType string) {
		s.t = t
		for _, user := range []string{"", admin, root} {
			s.things()
			req, err := http.NewRequestWithContext(t.Context(), method, "/", strings.NewReader(body))
			if err != nil {
				t.Skip()
			}
			u, err := req.URL.Parse("https://mp.example" + path)
			if err != nil || !strings.HasPrefix(path, "/") {
				t.Skip()
			}
			req.URL, req.RemoteAddr = u, "192.0.2.9:1"
			if contentType != "" {
				req.Header.Set("Content-Type", contentType)
			}
			if user != "" {
				req.Header.Set("Authorization", "Bearer "+s.tokens[user])
			}
			rec := httptest.NewRecorder()
			s.api.Handler().ServeHTTP(rec, req)
			if rec.Code >= 500 {
				t.Errorf("%q %q %q as %q: got %d %s", method, path, body, user, rec.Code, rec.Body)
			}
			if strings.HasSuffix(path, "/logout") && user != "" {
				s.login(user)
			}
		}
	})
}
