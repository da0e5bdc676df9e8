// Command parts runs the parts of `make test`: targets of make, in the lanes
// that .ci/budget gives them, and ends with a table of how long each took.
//
//	parts [-budget FILE] [TARGET...]
//
// Without targets it runs all that the budget lists. Stages come one after the
// other; within a stage the lanes run side by side, and the parts of a lane one
// after the other. All of them run, also after one has failed, so that one run tells
// everything; only a first stage that failed ends it, for what the others
// would try was not built. The exit status says whether all were good.
//
// What a part prints is in dist/logs/TARGET. Of those that failed, what tells
// why comes once more at the end, where it is found.
//
// A part that takes more than twice its budget has failed, unless others used
// the processors meanwhile: then a warning is all. A part also gets
// MULTIPAAS_BUILT=1 when a stage came before it: what it needs is there, and
// nobody may write it anew under a suite that runs.
//
// Ended by a signal, it ends everything that its parts have started.
//
// Parties: the Makefile.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	flags := flag.NewFlagSet("parts", flag.ContinueOnError)
	budget := flags.String("budget", ".ci/budget", "file with the parts, their lanes and seconds")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	parts, err := readBudget(*budget, flags.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "parts:", err)
		return 2
	}
	ctx, stop := context.WithCancelCause(context.Background())
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		signal.Notify(ended, syscall.SIGHUP)
	}
	go func() { stop(fmt.Errorf("ended by a signal: %s", <-ended)) }()
	f, err := newFamily()
	if err != nil {
		fmt.Fprintln(os.Stderr, "parts:", err)
		return 1
	}
	r, err := newRunner("dist", os.Stdout, f, func(target string) *exec.Cmd {
		return exec.Command("make", "--no-print-directory", target)
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "parts:", err)
		return 1
	}
	// The long forms of the suites have no budget.
	r.budgets = os.Getenv("MULTIPAAS_LONG") == ""
	good := r.all(ctx, parts)
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "parts:", context.Cause(ctx))
		if err := f.end(); err != nil {
			fmt.Fprintln(os.Stderr, "parts:", err)
		}
		sweep := exec.Command("dist/lab", "sweep")
		sweep.Stdout, sweep.Stderr = os.Stdout, os.Stderr
		if f.start(sweep) == nil {
			_ = f.wait(sweep)
		}
		return 130
	}
	if !good {
		return 1
	}
	return 0
}
