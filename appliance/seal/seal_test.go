package seal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestSeal(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pki", "volumes.key")
	k, err := LoadOrCreate(file)
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadOrCreate(file)
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("a secret")
	sealed := k.Seal(secret, "acme/web")
	if bytes.Contains(sealed, secret) || bytes.Equal(sealed, k.Seal(secret, "acme/web")) {
		t.Errorf("it is sealed as %q", sealed)
	}
	if got, err := again.Open(sealed, "acme/web"); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("opened: %q, %v", got, err)
	}
	if got, err := k.Open(sealed, "evil/web"); err == nil {
		t.Errorf("opened for another: %q", got)
	}
	sealed[len(sealed)-1]++
	if got, err := k.Open(sealed, "acme/web"); err == nil {
		t.Errorf("changed, it is opened: %q", got)
	}
	other, err := LoadOrCreate(file + "2")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]byte{other.Seal(secret, "acme/web"), nil, []byte("short")} {
		if _, err := k.Open(c, "acme/web"); !errors.Is(err, ErrOtherKey) {
			t.Errorf("%q: %v, want ErrOtherKey", c, err)
		}
	}
	if err := os.WriteFile(file, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreate(file); err == nil {
		t.Error("a file with another key than ours was read")
	}
}
