// Command tool runs as root in pods of the attack suite and does what an
// attacker would with a shell there.
//
//	tool wait             serves /healthz on :8080 until it is stopped, /who, /headers
//	                      and /?cookie=WHAT-TO-SET
//	tool try ADDRESS...   one line per address: "ADDRESS open|closed REASON";
//	                      tcp:HOST:PORT, udp:HOST:PORT, tcp@PORT:HOST:PORT from a port
//	tool ask QUESTION...  one line per question of DNS, SERVER/NETWORK/TYPE/NAME
//	tool where            prints how the default route is reached, as JSON
//	tool send LINK        sends frames, base64 lines, as they are
//	tool watch PORT...    prints which marked packets it sees, until it is stopped
//	tool open PATH...     one line per file: "PATH open|closed REASON"; sockets
//	                      are connected to
//	tool write PATH...    the same, for writing; a path may be a pattern
//	tool run PROGRAM...   runs "PROGRAM who" as its child, one line for each
//	tool who              prints whom the kernel takes it for, as JSON
//	tool gain             one line per thing that only a machine's root may do:
//	                      "NAME open|closed REASON"
//	tool break WALL...    one line per wall between a machine and its host, as
//	                      breakers name them: "WALL open|closed REASON"
//	tool link NAME=TO...  makes symbolic links; a NAME alone is a folder
//	tool swap NAME=TO...  changes folders for links and back until it is stopped
//	tool keep FILE TEXT   writes a file
//	tool volume DIR UID...  tries in a shared volume what is GlusterFS's, or other volumes':
//	                      one line each, "WHAT open|closed REASON"
//	tool get URL...       one line per URL: "URL STATUS BODY", or "URL none REASON"
//	tool say ADDRESS REQUEST...  the bytes of a request, escaped as in a URL's query;
//	                      one line per request: "REQUEST ANSWER", or "REQUEST none REASON"
//
// And what uses something up, for SECONDS; each says at its end how far it came
// and with which words it was refused:
//
//	tool fork SECONDS               tasks
//	tool memory                     memory, until it is killed
//	tool disk DIR SECONDS           space
//	tool inodes DIR SECONDS         files
//	tool log SECONDS                its own output
//	tool connect ADDRESS,... N SECONDS  TCP connections that say nothing
//	tool udp ADDRESS SECONDS        UDP flows to ADDRESS and its neighbours
//	tool churn ADDRESS SECONDS      TCP connections that are over at once
//	tool half ADDRESS SECONDS       TCP connections that nobody answers
//	tool scan NETWORK...            a packet to each address
//	tool hoard [hidden]             neighbours, until its input ends; hidden: in namespaces
//	                                that are left, by a process behind others with many files
//	tool silent [mounted|nowhere]   the machine's root becomes a FUSE that never answers,
//	                                processes wait for each other
//	tool take                       what the kernel counts for all or for a user, until
//	                                its input ends; one line each, "NAME NUMBER REASON"
//
// And who goes on meanwhile:
//
//	tool use                     once from each of those: "NAME open|closed REASON"
//	tool meet ADDRESS SECONDS    connects again and again
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/e2e/attempt"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if len(args) == 0 {
		args = []string{"wait"}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var err error
	switch args[0] {
	case "wait":
		err = wait(ctx)
	case "try":
		attempt.Each(args[1:], func(t string) string { return attempt.Reach(ctx, t) })
	case "ask":
		ask(ctx, args[1:])
	case "where":
		err = where()
	case "send":
		err = send(args[1], os.Stdin)
	case "watch":
		err = watch(ctx, args[1:])
	case "open":
		attempt.Each(args[1:], open)
	case "write":
		attempt.Each(args[1:], write)
	case "run":
		attempt.Each(args[1:], func(program string) string { return execute(ctx, program) })
	case "who":
		err = who()
	case "gain":
		err = gainAll(ctx, args[1:])
	case "break":
		err = breakAll(ctx, args[1:])
	case "walled":
		err = walled(ctx, args[1:])
	case "link":
		err = link(args[1:])
	case "swap":
		err = swap(ctx, args[1:])
	case "keep":
		err = keep(args[1], args[2])
	case "volume":
		inVolume(args[1], args[2:])
	case "loops":
		err = loops(args[1])
	case "get":
		attempt.Each(args[1:], func(url string) string { return get(ctx, url) })
	case "say":
		attempt.Each(args[2:], func(request string) string { return say(ctx, args[1], request) })
	case "fork":
		err = forkBomb(seconds(args, 1))
	case "memory":
		err = balloon()
	case "disk":
		err = fillDisk(args[1], seconds(args, 2))
	case "inodes":
		err = fillInodes(args[1], seconds(args, 2))
	case "log":
		err = floodLog(seconds(args, 1))
	case "connect":
		n, _ := strconv.Atoi(args[2])
		err = connect(ctx, args[1], n, seconds(args, 3))
	case "udp":
		err = floodUDP(args[1], seconds(args, 2))
	case "churn":
		err = churn(ctx, args[1], seconds(args, 2))
	case "half":
		err = half(args[1], seconds(args, 2))
	case "scan":
		err = scan(args[1:])
	case "hoard":
		err = hoard(args[1:])
	case "decoy":
		err = decoy()
	case "silent":
		err = silent(args[1:])
	case "undead":
		err = undead(args[1])
	case "take":
		err = take()
	case "use":
		err = use()
	case "meet":
		err = meet(ctx, args[1], seconds(args, 2))
	default:
		err = fmt.Errorf("unknown mode %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tool:", err)
		return 1
	}
	return 0
}

func seconds(args []string, at int) time.Duration {
	n := 10
	if at < len(args) {
		n, _ = strconv.Atoi(args[at])
	}
	return time.Duration(n) * time.Second
}

// wait answers everybody "ok", or at /who who it is, but for /never, which it leaves
// waiting.
func wait(ctx context.Context) error {
	return attempt.Serve(ctx, ":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/never" {
			<-r.Context().Done()
			return
		}
		if r.URL.Path == "/who" {
			name, _ := os.Hostname()
			_, _ = io.WriteString(w, name)
			return
		}
		if r.URL.Path == "/headers" {
			all := r.Header.Clone()
			_, _ = io.Copy(io.Discard, r.Body)
			for key, values := range r.Trailer {
				all["Trailer "+key] = values
			}
			_ = json.NewEncoder(w).Encode(all)
			return
		}
		for _, cookie := range r.URL.Query()["cookie"] {
			w.Header().Add("Set-Cookie", cookie)
		}
		_, _ = io.WriteString(w, "ok")
	}), "", "")
}

const patience = 3 * time.Second

// open tries to read something of a file, or to connect to a socket.
func open(path string) string {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ENXIO) { // a socket: whoever may, is let in by another door
		conn, err := net.DialTimeout("unix", path, 5*time.Second)
		if err != nil {
			return "closed " + err.Error()
		}
		defer conn.Close()
		return "open connected"
	}
	if err != nil {
		return "closed " + err.Error()
	}
	defer f.Close()
	var is unix.Stat_t
	if unix.Fstat(int(f.Fd()), &is) == nil && is.Rdev == unix.Mkdev(1, 3) && path != os.DevNull {
		return "closed masked by " + os.DevNull // which the runtime mounts over some files
	}
	n, err := f.Read(make([]byte, 16))
	if err != nil && n == 0 {
		return "closed read: " + err.Error()
	}
	return "open read"
}
