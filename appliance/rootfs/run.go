package rootfs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"

	"github.com/multipaas/multipaas/appliance/child"
)

// Run is Output for programs whose output matters only if they fail.
func Run(ctx context.Context, root string, in io.Reader, program string, args ...string) error {
	out, err := Output(ctx, root, in, program, args...)
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// Output runs a program of an unpacked root file system to its end, by its own loader with its own libraries, so that the
// host needs no such tool, and returns what it has written, also if it fails. A chroot would need /dev and /proc in a folder
// that all share who use the image. in is its standard input, nil for none.
func Output(ctx context.Context, root string, in io.Reader, program string, args ...string) ([]byte, error) {
	libraries := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	loader := filepath.Join(libraries, "ld-linux-x86-64.so.2")
	cmd := exec.CommandContext(ctx, loader, append([]string{"--library-path", libraries, filepath.Join(root, program)}, args...)...)
	cmd.Stdin = in
	cmd.Env = []string{"PATH=/nonexistent", "MKE2FS_CONFIG=" + filepath.Join(root, "etc/mke2fs.conf"),
		"OPENSSL_CONF=/dev/null", // the host's own says nothing here
		"DM_DISABLE_UDEV=1",      // which may be another's, or not there
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := child.Command(cmd); err != nil {
		return out.Bytes(), fmt.Errorf("%s: %w", filepath.Base(program), err)
	}
	return out.Bytes(), nil
}
