package agent

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// TestSilence: while the server does not answer one asks it for keys, and the others don't wait.
func TestSilence(t *testing.T) {
	var asked atomic.Int32
	status := http.StatusNotFound
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(status)
		_, _ = w.Write([]byte(`{"key":"a2V5"}`))
	}))
	away := httptest.NewServer(nil)
	away.Close()
	defer web.Close()
	c := &Client{server: web.URL, http: web.Client()}
	get := func() error { _, err := c.VolumeKey(t.Context(), "acme/web/shop/data", "u1"); return err }
	for range 2 {
		if err := get(); err == nil || errors.Is(err, errSilent) {
			t.Errorf("what is refused is %v", err)
		}
	}
	c.server = away.URL
	if err := get(); err == nil || errors.Is(err, errSilent) {
		t.Errorf("who asks first is told %v", err)
	}
	c.server, status = web.URL, http.StatusOK
	for range 3 {
		if err := get(); !errors.Is(err, errSilent) {
			t.Errorf("the next are told %v", err)
		}
	}
	c.keys.next = time.Now()
	for range 2 {
		if err := get(); err != nil {
			t.Error(err)
		}
	}
	if n := asked.Load(); n != 4 {
		t.Errorf("it was asked %d times, want 4", n)
	}
}
