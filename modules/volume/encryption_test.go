package volume

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/diskimage"
)

// TestWithoutKey: an encrypted volume isn't made without its key, nor where the kernel can't encrypt, and nothing plain in its
// place; the error says why. testing/vm makes one.
func TestWithoutKey(t *testing.T) {
	dir := t.TempDir()
	h := newHost(filepath.Join(dir, "pool"), filepath.Join(dir, "machines"), "/nonexistent")
	var asked []string
	h.cfg.Encryption = Encryption{Tools: h.cfg.Tools, Key: func(_ context.Context, volume, uid string) ([]byte, error) {
		asked = append(asked, volume+" "+uid)
		return nil, errors.New("no connection to https://192.0.2.1")
	}}
	v := testVolume(300 * mib)
	v.Encrypted = true
	want := "can't get the key"
	if err := diskimage.CanEncrypt(); err != nil {
		want = "the kernel of its host can't encrypt"
	}
	if err := h.Ensure(t.Context(), v); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "192.0.2.1") {
		t.Errorf("without a key: %v, want %q", err, want)
	}
	if _, err := h.disk(v).Encryption.Key(t.Context()); err == nil || !strings.Contains(err.Error(), "can't get the key") {
		t.Errorf("the key: %v", err)
	}
	if asked[0] != v.Key+" "+v.UID {
		t.Errorf("it asked for the key of %s", asked)
	}
	if left, err := filepath.Glob(h.place(v.UID).at("disk.img*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if rec, err := h.place(v.UID).record(); err != nil || !rec.Encrypted {
		t.Errorf("its record: %+v, %v", rec, err)
	}
}
