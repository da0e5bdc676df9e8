// Package seal keeps secrets that lie in the datastore from being read there, and in copies of it: they
// are encrypted with a key that only servers have, in a file.
//
// Parties: modules that store secrets. Any package may import it; it imports leaves only.
package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/multipaas/multipaas/appliance/atomicfile"
)

// keyBytes is the length of a key, for AES-256.
const keyBytes = 32

// idBytes of the key's hash stand before what it has sealed, so that a wrong key is called so.
const idBytes = 8

// ErrOtherKey is returned for what was sealed with another key.
var ErrOtherKey = errors.New("it was sealed with another key")

// Key seals and opens. It is safe for concurrent use.
type Key struct {
	aead cipher.AEAD
	id   []byte
}

// New makes a Key of 32 bytes.
func New(key []byte) (*Key, error) {
	if len(key) != keyBytes {
		return nil, fmt.Errorf("a key of %d bytes: want %d", len(key), keyBytes)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	// Nonces are random: 2^32 secrets may be sealed with one key, and nobody has so many volumes.
	aead, err := cipher.NewGCMWithRandomNonce(block)
	sum := sha256.Sum256(key)
	return &Key{aead, sum[:idBytes]}, err
}

// LoadOrCreate reads the key from a file, or makes it. Who loses that file loses all that was sealed.
func LoadOrCreate(file string) (*Key, error) {
	key, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, keyBytes)
		_, _ = rand.Read(key) // it never fails
		if err = os.MkdirAll(filepath.Dir(file), 0o700); err == nil {
			err = atomicfile.Write(file, key, 0o600)
		}
	}
	if err != nil {
		return nil, err
	}
	k, err := New(key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return k, nil
}

// Seal encrypts a secret. It is opened only for what it is for.
func (k *Key) Seal(secret []byte, what string) []byte {
	return k.aead.Seal(append([]byte(nil), k.id...), nil, secret, []byte(what))
}

// Made says whether this key has sealed it.
func (k *Key) Made(sealed []byte) bool { return bytes.HasPrefix(sealed, k.id) }

// Open is the contrary of Seal. ErrOtherKey: another key has sealed it.
func (k *Key) Open(sealed []byte, what string) ([]byte, error) {
	if !k.Made(sealed) {
		return nil, ErrOtherKey
	}
	return k.aead.Open(nil, nil, sealed[idBytes:], []byte(what))
}
