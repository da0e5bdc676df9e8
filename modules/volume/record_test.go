package volume

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/multipaas/multipaas/modules/wire"
)

// TestRecord: an import that ends is not taken back by who looks at the volume at that time, nor takes back what that noted.
func TestRecord(t *testing.T) {
	h := New(Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	for i := range 40 {
		v := wire.Volume{UID: fmt.Sprintf("4b0a1f6e-0000-4000-8000-%012d", i), Key: "acme/web/shop/a", Importing: true}
		if _, err := h.noted(v, true, false); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			ended <- h.changeRecord(h.place(v.UID), func(rec *record) { rec.Import = importDone })
		}()
		for n := range 5 {
			v.NetworkID = fmt.Sprint(n)
			if _, err := h.noted(v, true, false); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if rec, err := h.place(v.UID).record(); err != nil || rec.Import != importDone || rec.NetworkID != v.NetworkID {
			t.Fatalf("it is %+v, %v", rec, err)
		}
	}
}
