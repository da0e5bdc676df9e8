package machine

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
)

// mountRoot lays the machine's own files over the image.
func mountRoot(lower, upper, work, root string) error {
	mounted, err := hostmount.Has(root)
	if err != nil || mounted {
		return err
	}
	for _, dir := range []string{upper, work, root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{lower, upper, work} {
		if strings.ContainsAny(dir, `,:\`) {
			return fmt.Errorf("data directory %q: overlayfs takes no comma, colon or backslash in a path", dir)
		}
	}
	options := "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount root file system %s: %w", root, err)
	}
	return nil
}
