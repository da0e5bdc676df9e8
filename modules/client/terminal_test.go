package client

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/modules/resource"
)

// screen is the other end of a terminal: it types and it reads what is shown.
type screen struct {
	master, terminal *os.File
	mu               sync.Mutex
	shown            strings.Builder
	changed          chan struct{}
}

// openTerminal makes a real terminal of that width.
func openTerminal(t *testing.T, columns uint16) *screen {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	// Through RawConn: Fd would take the file out of the poller, and Close would
	// no longer end a Read.
	raw, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	var ioctlErr error
	if err := raw.Control(func(fd uintptr) {
		if ioctlErr = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); ioctlErr == nil {
			number, ioctlErr = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}); err != nil || ioctlErr != nil {
		t.Fatal(err, ioctlErr)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
	s := &screen{master: master, terminal: terminal, changed: make(chan struct{}, 1)}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.shown.Write(b[:n])
			s.mu.Unlock()
			select {
			case s.changed <- struct{}{}:
			default:
			}
		}
	}()
	return s
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown.String()
}

// await waits until want has been shown.
func (s *screen) await(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for !strings.Contains(s.text(), want) {
		select {
		case <-s.changed:
		case <-deadline:
			t.Fatalf("the screen shows %q, want %q", s.text(), want)
		}
	}
}

func (s *screen) typeLine(t *testing.T, text string) {
	t.Helper()
	if _, err := s.master.WriteString(text + "\n"); err != nil {
		t.Fatal(err)
	}
}

// on runs mp on the screen, and returns its exit code later.
func (s *screen) on(t *testing.T, args ...string) <-chan int {
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	code := make(chan int, 1)
	go func() { code <- Main(t.Context(), args, s.terminal, s.terminal, s.terminal) }()
	return code
}

func TestTerminalHidesPasswords(t *testing.T) {
	serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"token":"secret","user":"me@acme.example","expiresAt":"2099-01-01T00:00:00Z"}`)
	})
	s := openTerminal(t, 80)
	code := s.on(t, "login")
	s.await(t, "E-mail: ")
	s.typeLine(t, "me@acme.example")
	s.await(t, "Password: ")
	s.typeLine(t, "open sesame")
	s.await(t, "Logged in as me@acme.example")
	if got := <-code; got != ExitOK || strings.Contains(s.text(), "sesame") {
		t.Errorf("got code %d, the screen shows %q", got, s.text())
	}
}

func TestTerminalAsksBeforeDeleting(t *testing.T) {
	serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			t.Error("it was deleted without the right answer")
		}
	})
	s := openTerminal(t, 80)
	code := s.on(t, "ws", "delete", "shop")
	s.await(t, "Type shop to confirm: ")
	s.typeLine(t, "yes")
	s.await(t, "nothing was done")
	if got := <-code; got != ExitFailed {
		t.Errorf("got code %d, want %d", got, ExitFailed)
	}
}

func TestTerminalDrawsProgressOver(t *testing.T) {
	goOn := make(chan struct{})
	serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, event(resource.TaskRunning))
		w.(http.Flusher).Flush()
		<-goOn
		fmt.Fprint(w, event(resource.TaskDone))
	})
	s := openTerminal(t, 80)
	code := s.on(t, "tasks", "follow", "t1")
	s.await(t, yellow+"/"+plain) // the second picture of what turns
	close(goOn)
	s.await(t, "is done")
	if got := <-code; got != ExitOK || !strings.Contains(s.text(), "\x1b[1A") {
		t.Errorf("got code %d, the screen shows %q", got, s.text())
	}
}

func TestTerminalCutsTables(t *testing.T) {
	serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"items":[{"name":%q,"spec":{"image":%q},"status":{"phase":"Ready"}}]}`, "hello", strings.Repeat("long/", 40))
	})
	s := openTerminal(t, 60)
	code := s.on(t, "apps", "list")
	if got := <-code; got != ExitOK {
		t.Fatalf("got code %d", got)
	}
	s.await(t, "…")
	for _, line := range strings.Split(s.text(), "\r\n") {
		plainLine := strings.NewReplacer(green, "", plain, "").Replace(line)
		if n := len([]rune(plainLine)); n > 60 {
			t.Errorf("a line of %d characters on 60 columns: %q", n, line)
		}
	}
	if !strings.Contains(s.text(), green) {
		t.Errorf("Ready is not green: %q", s.text())
	}
}
