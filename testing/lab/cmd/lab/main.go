// Command lab makes, uses and breaks labs: hosts made of namespaces, with the
// real binary on them. `make up` is `lab up`.
//
// Parties: developers at a shell and the Makefile. Run it as root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/multipaas/multipaas/testing/lab"
)

func main() {
	lab.Hook()
	os.Exit(run(os.Args[1:]))
}

const usage = `Usage: lab [-C DIR] COMMAND

  up                     bring up a datacenter: a server, two nodes, a tenant with an app
  down                   end the lab, without a trace
  ls                     list the hosts and what runs on them
  add HOST               add a host, and make the lab if there is none
  exec HOST -- CMD...    run a command on a host
  logs HOST [SERVICE]    print the output of a host's service
  kill HOST              pull the plug
  boot HOST              switch on again, with the disk it had
  partition A[,A] B[,B]  cut the network between hosts
  isolate HOST           cut a host from all others
  loss HOST PERCENT      lose packets by chance
  heal                   end partitions and losses
  sweep [-kept]          remove labs that nobody owns any more

DIR is the lab's folder, .lab/up if not given. Several labs can stand at once.
`

// usualDir is the folder of a lab that none is given for.
var usualDir = filepath.Join(".lab", "up")

// errUsage is returned for a command line that makes no sense.
var errUsage = errors.New("wrong usage")

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("lab", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	dir := flags.String("C", usualDir, "folder of the lab")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	err := command(ctx, *dir, flags.Args())
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprint(os.Stderr, usage)
		return 2
	case errors.As(err, &exit) && flags.Arg(0) == "exec":
		return exit.ExitCode() // the command has said why
	}
	fmt.Fprintln(os.Stderr, "lab:", err)
	return 1
}

func command(ctx context.Context, dir string, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	name, args := args[0], args[1:]
	want := func(n int) bool { return len(args) == n }
	switch {
	case name == "help":
		fmt.Print(usage)
		return nil
	case name == "up" && want(0):
		return up(ctx, dir)
	case name == "down" && want(0):
		return down(ctx, dir)
	case name == "add" && want(1):
		return add(ctx, dir, args[0])
	case name == "sweep":
		swept, err := lab.Sweep(ctx, len(args) > 0 && strings.TrimLeft(args[0], "-") == "kept")
		for _, s := range swept {
			fmt.Println("swept", s)
		}
		return err
	}
	l, err := lab.Open(dir, say)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no lab in %s: `lab up` or `lab add HOST` makes one", dir)
	}
	if err != nil {
		return err
	}
	host := func() (*lab.Host, error) {
		if h := l.Host(args[0]); h != nil {
			return h, nil
		}
		return nil, fmt.Errorf("%s: no such host; `lab ls` lists them", args[0])
	}
	switch {
	case name == "ls" && want(0):
		return list(ctx, l)
	case name == "exec" && len(args) >= 1:
		h, err := host()
		if err != nil {
			return err
		}
		return execute(ctx, h, args[1:])
	case name == "logs" && (want(1) || want(2)):
		h, err := host()
		if err != nil {
			return err
		}
		return logs(ctx, h, args[1:])
	case name == "kill" && want(1):
		h, err := host()
		if err != nil {
			return err
		}
		return h.Kill(ctx)
	case name == "boot" && want(1):
		h, err := host()
		if err != nil {
			return err
		}
		if h.Binary() == "" || l.SetBinary(strings.Fields(h.Binary())[0]) != nil {
			say("%s boots without a binary", h.Name())
		}
		return h.Boot(ctx)
	case name == "partition" && want(2):
		return l.Partition(ctx, strings.Split(args[0], ","), strings.Split(args[1], ","))
	case name == "isolate" && want(1):
		return l.Isolate(ctx, args[0])
	case name == "loss" && want(2):
		percent, err := strconv.Atoi(strings.TrimSuffix(args[1], "%"))
		if err != nil {
			return fmt.Errorf("%q: not a number", args[1])
		}
		return l.Loss(ctx, args[0], percent)
	case name == "heal" && want(0):
		return l.Heal(ctx)
	}
	return errUsage
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// open opens the lab in dir, or makes one.
func open(ctx context.Context, dir, binary string) (*lab.Lab, error) {
	l, err := lab.Open(dir, say)
	if errors.Is(err, fs.ErrNotExist) {
		abs, aerr := filepath.Abs(dir)
		if aerr != nil {
			return nil, aerr
		}
		return lab.New(ctx, lab.Options{Name: filepath.Base(abs), Dir: abs, Binary: binary, Keep: true, Logf: say})
	}
	if err == nil && binary != "" {
		err = l.SetBinary(binary)
	}
	return l, err
}

func add(ctx context.Context, dir, name string) error {
	binary := builtBinary
	if _, err := os.Stat(binary); err != nil {
		binary = ""
	}
	l, err := open(ctx, dir, binary)
	if err != nil {
		return err
	}
	h, err := l.AddHost(ctx, name)
	if err != nil {
		return err
	}
	fmt.Printf("%s %s\n", h.Name(), h.Address())
	return nil
}

func down(ctx context.Context, dir string) error {
	l, err := lab.Open(dir, say)
	if err == nil {
		err = l.Close(ctx)
	} else if errors.Is(err, fs.ErrNotExist) {
		// What a half-made lab, or one before a reboot, has left.
		_, err = lab.Sweep(ctx, false)
	}
	if err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(dir), removeEnv(dir))
}

func list(ctx context.Context, l *lab.Lab) error {
	tw := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "HOST\tADDRESS\tPOWER\tPROCESS\tSERVICES")
	for _, h := range l.Hosts() {
		power, services := "off", ""
		if h.Running() {
			power = "on"
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			all, err := h.Services(ctx)
			cancel()
			if err != nil {
				services = err.Error()
			}
			for _, s := range all {
				state := "runs"
				if s.PID == 0 {
					state = "ended: " + s.Exit
				}
				services += fmt.Sprintf("%s (%s, %d restarts) ", s.Name, state, s.Restarts)
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%s\n", h.Name(), h.Address(), power, h.PID(), services)
	}
	return tw.Flush()
}

func execute(ctx context.Context, h *lab.Host, args []string) error {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		args = []string{"bash"}
	}
	cmd := h.Command(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// In our process group, so that it may use our terminal.
	cmd.SysProcAttr = nil
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	return cmd.Run()
}

func logs(ctx context.Context, h *lab.Host, args []string) error {
	names := args
	if len(names) == 0 {
		all, err := h.Services(ctx)
		if err != nil {
			return err
		}
		for _, s := range all {
			names = append(names, s.Name)
		}
	}
	for _, n := range names {
		data, err := os.ReadFile(h.LogFile(n))
		if err != nil {
			return err
		}
		if _, err := os.Stdout.Write(data); err != nil {
			return err
		}
	}
	return nil
}
