// Command boot boots the virtual machines of the package vm for the first time
// and keeps them as they are then: tests need not wait for it.
//
//	boot IMAGE OUT
//
// IMAGE has been made by testing/vm/root/build.sh. OUT is a folder beside it: the
// disks in OUT name the disk in IMAGE by the way from here to there.
//
// Parties: the Makefile.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/multipaas/multipaas/testing/vm"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: boot IMAGE OUT")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "boot:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, image, out string) error {
	// Made where it will be, for disks are moved and not copied.
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	work := filepath.Join(out, "work")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(work)
	server, node, err := vm.Pair(ctx, work, vm.Image(image), "", "")
	if err != nil {
		return err
	}
	errs := make(chan error)
	var wg sync.WaitGroup
	for _, v := range []*vm.VM{server, node} {
		wg.Go(func() { errs <- keep(ctx, v, image, out) })
	}
	go func() { wg.Wait(); close(errs) }()
	for e := range errs {
		err = errors.Join(err, e)
	}
	return err
}

// keep boots one machine and keeps it.
func keep(ctx context.Context, v *vm.VM, image, out string) error {
	if err := v.Power(); err != nil {
		return err
	}
	defer v.Cut()
	if err := v.Settled(ctx); err != nil {
		return err
	}
	if err := v.Keep(ctx, vm.Booted(out)); err != nil {
		return err
	}
	there, err := filepath.Rel(out, filepath.Join(image, "root.qcow2"))
	if err != nil {
		return err
	}
	// Only the name of what it stands on, which is the same file.
	said, err := exec.CommandContext(ctx, "qemu-img", "rebase", "-u", "-F", "qcow2", "-b", there, filepath.Join(out, v.Name()+".qcow2")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("qemu-img rebase: %w: %s", err, said)
	}
	return nil
}
