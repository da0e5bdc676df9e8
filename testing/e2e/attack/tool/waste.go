package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// forkBomb makes tasks that make tasks, without rest, for a while, and says what
// the kernel said. Where there is no room for one more task, Go's runtime can't
// have its next thread either and would end the program: so a child without a
// runtime does it, and here are raw system calls only, in which a goroutine keeps
// its thread.
func forkBomb(d time.Duration) error {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)
	shared, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	made := (*int64)(unsafe.Pointer(&shared[0]))
	refused := (*int64)(unsafe.Pointer(&shared[8]))
	why := (*int64)(unsafe.Pointer(&shared[16]))
	pid, errno := bomb(made, refused, why, time.Now().Add(d).Unix())
	if errno != 0 {
		return errno
	}
	for errno = syscall.EINTR; errno == syscall.EINTR; {
		_, _, errno = syscall.RawSyscall6(syscall.SYS_WAIT4, pid, 0, 0, 0, 0, 0)
	}
	if errno != 0 {
		return errno
	}
	text := fmt.Appendf(nil, "made %d tasks; refused %d times: %v\n", *made, *refused, syscall.Errno(*why))
	syscall.RawSyscall(syscall.SYS_WRITE, 1, uintptr(unsafe.Pointer(&text[0])), uintptr(len(text)))
	// At once: the others go on until this one, the first of its container, is gone.
	syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
	return nil
}

// bomb forks a child that forks in a loop until its end, as its own children do for
// ever. In a child there is one thread and no runtime: nothing here allocates or
// grows the stack.
//
//go:nosplit
//go:norace
func bomb(made, refused, why *int64, end int64) (uintptr, syscall.Errno) {
	first, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || first != 0 {
		return first, errno
	}
	child := false
	var now [2]int64
	for {
		pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		switch {
		case errno != 0:
			*refused++
			*why = int64(errno)
			if child {
				// Thousands that ask without rest leave the first one no CPU to end by.
				nap := [2]int64{0, 200_000_000}
				syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&nap[0])), 0, 0)
			}
		case pid == 0:
			child = true
		default:
			*made++
		}
		if child {
			continue
		}
		syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, 0, uintptr(unsafe.Pointer(&now[0])), 0)
		if now[0] >= end {
			syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
}

// balloon takes memory and uses it, until somebody ends it.
func balloon() error {
	const step = 64 << 20
	var all [][]byte
	for n := step; ; n += step {
		b, err := unix.Mmap(-1, 0, step, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return fmt.Errorf("refused at %d MiB: %w", n>>20, err)
		}
		for i := 0; i < step; i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
		fmt.Println("MiB", n>>20, len(all))
	}
}

// fillDisk writes a file until it may not, or for a while.
func fillDisk(dir string, d time.Duration) error {
	f, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(rand.Uint32())
	}
	n, end := 0, time.Now().Add(d)
	for time.Now().Before(end) {
		if _, err := f.Write(block); err != nil {
			fmt.Printf("refused after %d MiB: %v\n", n, err)
			return nil
		}
		if n++; n%256 == 0 {
			fmt.Println("MiB", n)
		}
	}
	fmt.Printf("not refused in %s: %d MiB\n", d, n)
	return nil
}

// fillInodes makes empty files until it may not, or for a while.
func fillInodes(dir string, d time.Duration) error {
	var files, failed atomic.Int64
	var first atomic.Pointer[error]
	end := time.Now().Add(d)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for folder := 0; time.Now().Before(end) && failed.Load() == 0; folder++ {
				at := filepath.Join(dir, fmt.Sprintf("%d-%d", w, folder))
				err := os.Mkdir(at, 0o700)
				for i := 0; err == nil && i < 4096; i++ {
					if err = unix.Mknod(at+"/"+strconv.Itoa(i), unix.S_IFREG|0o600, 0); err == nil {
						files.Add(1)
					}
				}
				if err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	if err := first.Load(); err != nil {
		fmt.Printf("refused after %d files: %v\n", files.Load(), *err)
		return nil
	}
	fmt.Printf("not refused in %s: %d files\n", d, files.Load())
	return nil
}

// floodLog writes lines as fast as they are taken.
func floodLog(d time.Duration) error {
	line := []byte(strings.Repeat("flood ", 170) + "\n")
	n, end := 0, time.Now().Add(d)
	for time.Now().Before(end) {
		m, err := os.Stdout.Write(line)
		if n += m; err != nil {
			return err
		}
	}
	return nil
}

// connect opens connections to an address, as many as it may have up to n, says
// nothing on them and holds them for a while; those that the other side ends are
// opened again.
func connect(ctx context.Context, address string, n int, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var open, most, opened, ended, failed atomic.Int64
	var first atomic.Pointer[error]
	var wg sync.WaitGroup
	all := strings.Split(address, ",")
	for i := range n {
		address := all[i%len(all)]
		wg.Go(func() {
			for ctx.Err() == nil {
				conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
				if err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, &err)
					select {
					case <-ctx.Done():
					case <-time.After(200 * time.Millisecond):
					}
					continue
				}
				opened.Add(1)
				most.Store(max(most.Load(), open.Add(1)))
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				_, err = conn.Read(make([]byte, 1))
				stop()
				conn.Close()
				open.Add(-1)
				if ctx.Err() == nil {
					ended.Add(1)
					if errors.Is(err, io.EOF) {
						err = errors.New("the other side ended it")
					}
					first.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	text := "none"
	if err := first.Load(); err != nil {
		text = (*err).Error()
	}
	fmt.Printf("at once %d, opened %d, ended by the other side %d, failed %d; first error: %s\n", most.Load(), opened.Load(), ended.Load(), failed.Load(), text)
	return nil
}

// floodUDP sends packets that each begin a new connection for who keeps track.
func floodUDP(prefix string, d time.Duration) error {
	n, failed, end := 0, 0, time.Now().Add(d)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	ip := net.ParseIP(prefix).To4()
	if ip == nil {
		return fmt.Errorf("address %q", prefix)
	}
	for time.Now().Before(end) {
		to := &unix.SockaddrInet4{Port: 1024 + n%60000, Addr: [4]byte{ip[0], ip[1], ip[2], byte(n / 60000)}}
		if err := unix.Sendto(fd, []byte("x"), 0, to); err != nil {
			failed++
		}
		n++
	}
	fmt.Printf("sent %d, failed %d\n", n, failed)
	return nil
}
