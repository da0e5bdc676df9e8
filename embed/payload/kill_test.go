package payload

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// unpackVariable makes the test binary unpack an archive again and again
// instead of running tests: "ARCHIVE KEY DATADIR".
const unpackVariable = "MULTIPAAS_TEST_UNPACK"

func unpackForKill() int {
	fields := strings.Fields(os.Getenv(unpackVariable))
	key, err := ParsePublicKey(fields[1])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for {
		p, err := Open(fields[0], key)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		root, err := p.Unpack(context.Background(), fields[2])
		if err != nil {
			fmt.Println(err)
			return 1
		}
		p.Close()
		// Only the tree: then blobs are read, found good and linked anew.
		// Every other time the blobs too.
		os.RemoveAll(root)
		if rand.IntN(2) == 0 {
			os.RemoveAll(filepath.Join(fields[2], blobsName))
		}
	}
}

// TestKill kills a process that unpacks at arbitrary points, and unpacks
// after it: all must be there, and nothing more.
func TestKill(t *testing.T) {
	public, key := newKeyPair(t)
	files := testFiles()
	archive := writeArchive(t, key, files)
	data := t.TempDir()
	for round := range 25 {
		killUnpacking(t, archive, public, data, time.Duration(rand.IntN(60))*time.Millisecond)
		p := mustOpen(t, archive, public)
		root, err := p.Unpack(t.Context(), data)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		checkTree(t, root, files)
		if _, err := os.Stat(filepath.Join(data, tmpName)); !errors.Is(err, fs.ErrNotExist) && round%2 == 0 {
			// The tree may have been whole before the kill; then what the
			// process had begun next is found by the next one.
			if err := os.RemoveAll(root); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Unpack(t.Context(), data); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(data, tmpName)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("round %d: temporary files stay", round)
			}
		}
		os.RemoveAll(root)
	}
}

func killUnpacking(t *testing.T, archive string, key ed25519.PublicKey, data string, after time.Duration) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(self)
	command.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s", unpackVariable, archive, FormatPublicKey(key), data))
	var out strings.Builder
	command.Stdout = &out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	// Not a wait for something: the point is that it is any moment.
	time.Sleep(after)
	command.Process.Kill()
	command.Wait()
	if out.Len() > 0 {
		t.Fatalf("the process that was to be killed failed by itself: %s", out.String())
	}
}
