package payload

import (
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// linkedKeys are the public keys that the build trusts, with commas between.
// The linker sets it (-X github.com/multipaas/multipaas/embed/payload.linkedKeys=...)
// and nothing else does.
var linkedKeys string

const (
	// KeysVariable names the environment variable with the path of a file of
	// more trusted keys.
	KeysVariable = "MULTIPAAS_PAYLOAD_KEYS"
	// DefaultKeysFile is read when the variable is not set; it need not be there.
	DefaultKeysFile = "/etc/multipaas/payload.keys"
)

const (
	keyPrefix      = "ed25519:"
	privateKeyType = "PRIVATE KEY"
	// signedPrefix stands before what is signed, so that a signature made
	// for something else is never one of a payload.
	signedPrefix = "multipaas payload manifest v1\n"
)

// TrustedKeys are the keys that the build linked in and those of the file,
// one per line. An empty name takes the file that MULTIPAAS_PAYLOAD_KEYS names or, if it is
// there, DefaultKeysFile.
func TrustedKeys(file string) ([]ed25519.PublicKey, error) {
	keys, err := parsePublicKeys("keys linked into this program", strings.ReplaceAll(linkedKeys, ",", "\n"))
	if err != nil {
		return nil, err
	}
	named := cmp.Or(file, os.Getenv(KeysVariable))
	file = cmp.Or(named, DefaultKeysFile)
	data, err := os.ReadFile(file)
	if named == "" && errors.Is(err, fs.ErrNotExist) {
		return keys, nil
	}
	if err != nil {
		return keys, err
	}
	more, err := parsePublicKeys(file, string(data))
	return append(keys, more...), err
}

// parsePublicKeys reads keys, one per line; # begins a comment.
func parsePublicKeys(from, text string) ([]ed25519.PublicKey, error) {
	var keys []ed25519.PublicKey
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		key, err := ParsePublicKey(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", from, i+1, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// ParsePublicKey reads the text form of a public key, "ed25519:" and base64.
func ParsePublicKey(text string) (ed25519.PublicKey, error) {
	encoded, ok := strings.CutPrefix(text, keyPrefix)
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(raw) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%q: not a public key; give %s and 44 characters of base64", text, keyPrefix)
	}
	return raw, nil
}

// FormatPublicKey writes the text form of a public key.
func FormatPublicKey(key ed25519.PublicKey) string {
	return keyPrefix + base64.StdEncoding.EncodeToString(key)
}

// CreateKey makes a private key in a new file, readable by its owner only.
// The error wraps fs.ErrExist when the file is there.
func CreateKey(file string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	err = pem.Encode(f, &pem.Block{Type: privateKeyType, Bytes: der})
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(file)
		return nil, err
	}
	return key, nil
}

// ReadKey reads a private key: PKCS #8 in PEM, as CreateKey and
// `openssl genpkey -algorithm ed25519` write it.
func ReadKey(file string) (ed25519.PrivateKey, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != privateKeyType {
		return nil, fmt.Errorf("%s: not a private key in PEM; make one with `multipaas payload key new FILE`", file)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: a key of another kind; give an Ed25519 key", file)
	}
	return key, nil
}

// sign makes the signature file of a manifest: the algorithm, the key's id and
// the signature.
func sign(manifest []byte, key ed25519.PrivateKey) []byte {
	signature := ed25519.Sign(key, append([]byte(signedPrefix), manifest...))
	return fmt.Appendf(nil, "ed25519 %s %s\n",
		keyID(key.Public().(ed25519.PublicKey)), base64.StdEncoding.EncodeToString(signature))
}

// verifySignature looks for a good signature by one of keys.
func verifySignature(manifest, signature []byte, keys []ed25519.PublicKey) error {
	if len(keys) == 0 {
		return fmt.Errorf("%w: this program trusts no key; name a file of keys in %s, or a folder in %s",
			ErrUntrusted, KeysVariable, DirVariable)
	}
	fields := strings.Fields(string(signature))
	if len(fields) != 3 || fields[0] != "ed25519" {
		return fmt.Errorf("%w: %s holds no signature", ErrDamaged, signatureName)
	}
	i := slices.IndexFunc(keys, func(k ed25519.PublicKey) bool { return keyID(k) == fields[1] })
	if i < 0 {
		return fmt.Errorf("%w: signed by %s; add that key to a file and name it in %s if you know whose it is",
			ErrUntrusted, fields[1], KeysVariable)
	}
	raw, err := base64.StdEncoding.DecodeString(fields[2])
	if err != nil || !ed25519.Verify(keys[i], append([]byte(signedPrefix), manifest...), raw) {
		return fmt.Errorf("%w: %s does not fit its signature", ErrDamaged, manifestName)
	}
	return nil
}

// keyID names a public key in few characters.
func keyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:8])
}
