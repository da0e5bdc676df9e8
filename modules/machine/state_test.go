package machine

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
)

// TestState: whatever root in a machine does to the file by which its init tells what runs,
// who reads it reads little, and waits for nothing.
func TestState(t *testing.T) {
	m := home(t.TempDir())
	if got := serviceTrouble(m); got != "" {
		t.Errorf("of a machine that has no such file: %q", got)
	}
	if err := makeState(m, testFirst); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := hostmount.Unmount(string(m)); err != nil {
			t.Error(err)
		}
	})
	info, err := os.Stat(m.at(stateName))
	if err != nil || info.Size() != stateBytes || info.Mode() != 0o660 {
		t.Errorf("the file is %v: %v", info, err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(m.at(stateName), []byte(text), 0); err != nil && !strings.Contains(err.Error(), "no space") {
			t.Fatal(err)
		}
	}
	const two = `{"services":[{"name":"kubelet","state":"backoff","restarts":3,"last_exit":"signal: \u001b[31mkilled"},{"name":"containerd","state":"ready"}]}`
	const said = "kubelet backoff (signal: [31mkilled, 3 restarts)"
	for _, c := range []struct{ what, text, want string }{
		{"nothing yet", strings.Repeat(" ", stateBytes), "starting"},
		{"emptied", "", "starting"},
		{"one in trouble", two, said},
		{"with an older one's end behind it", two + "\n\n  ]\n}\n", said},
		{"half of it", two[:40], "what its init says can't be read"},
		{"rubbish", "\x00\xff", "what its init says can't be read"},
		{"as much as there is room for", two + strings.Repeat("x", 1<<20), said},
		{"too much to be read", strings.Repeat(" ", 1<<20) + two, "starting"},
		{"very deep", strings.Repeat("[", 1<<20), "what its init says can't be read"},
		{"very many", `{"services":[` + strings.Repeat(`{"name":"x"},`, 500) + `{"name":"y"}]}`, strings.Repeat("x , ", 15) + "x "},
	} {
		write(c.text)
		if got := serviceTrouble(m); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
	write(two)

	// A write from memory that nobody delivers, as of a mapped file of a FUSE.
	f, err := os.OpenFile(m.at(stateName), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	memory, deliver := undelivered(t)
	wrote := make(chan error, 2)
	go func() { _, err := unix.Pwrite(int(f.Fd()), memory, 0); wrote <- err }()
	awaitFault(t)
	other, err := os.OpenFile(m.at(stateName), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	go func() { _, err := other.WriteAt([]byte("{"), 0); wrote <- err }() // waits for the lock
	read := make(chan string, 1)
	go func() { read <- serviceTrouble(m) }()
	select {
	case got := <-read:
		if got != said {
			t.Errorf("while a write goes on: %q", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("who reads waits for who writes")
	}
	select {
	case err := <-wrote:
		t.Errorf("a write has ended, nothing was tried: %v", err)
	default:
	}
	deliver()
	for range 2 {
		<-wrote
	}
}

// undelivered is memory that who reads it waits for, until deliver is called.
func undelivered(t *testing.T) (memory []byte, deliver func()) {
	t.Helper()
	memory, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		t.Fatalf("userfaultfd: %v", errno)
	}
	const api, register = 0xc018aa3f, 0xc020aa00 // UFFDIO_API, UFFDIO_REGISTER
	hello := [3]uint64{0xaa}
	whole := [4]uint64{uint64(uintptr(unsafe.Pointer(&memory[0]))), uint64(len(memory)), 1} // what is missing
	_, _, errno1 := unix.Syscall(unix.SYS_IOCTL, fd, api, uintptr(unsafe.Pointer(&hello)))
	_, _, errno2 := unix.Syscall(unix.SYS_IOCTL, fd, register, uintptr(unsafe.Pointer(&whole)))
	if errno1 != 0 || errno2 != 0 {
		t.Fatalf("userfaultfd: %v, %v", errno1, errno2)
	}
	return memory, func() { unix.Close(int(fd)) }
}

// awaitFault waits until a thread of this process waits for memory.
func awaitFault(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if at, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/wchan"); bytes.Contains(at, []byte("userfault")) {
				return
			}
		}
	}
	t.Fatal("nobody waits for memory")
}
