// Command bench measures MultiPaaS beside the software that people would use
// without it: both on this machine, in the same run, in turns. docs/bench.md
// says how to run it and how to read what it prints.
//
// Parties: make bench, which builds what this runs. Run it as root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/multipaas/multipaas/testing/bench/api"
	"github.com/multipaas/multipaas/testing/bench/balancer"
	"github.com/multipaas/multipaas/testing/bench/measure"
	"github.com/multipaas/multipaas/testing/bench/plane"
	"github.com/multipaas/multipaas/testing/bench/registry"
	"github.com/multipaas/multipaas/testing/bench/report"
	"github.com/multipaas/multipaas/testing/bench/storage"
	"github.com/multipaas/multipaas/testing/bench/ws"
	"github.com/multipaas/multipaas/testing/lab"
)

// sections are in the order in which they run: what needs quiet first.
func sections() []measure.Section {
	return []measure.Section{balancer.Section(), registry.Section(), plane.Section(), ws.Section(), api.Section(), storage.Section()}
}

func main() {
	lab.Hook()
	balancer.Hook()
	storage.Hook()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	plot := flags.Bool("plot", false, "draw dist/bench.svg too")
	quick := flags.Bool("quick", false, "one round of few sizes: to see that everything works")
	profile := flags.String("profile", "", "write CPU profiles of ours to files that begin so")
	only := flags.String("only", "", "sections to run, with commas between: "+strings.Join(names(), ","))
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	chosen, err := choose(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 2
	}
	if err := bench(ctx, chosen, *quick, *plot, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func names() []string {
	var out []string
	for _, s := range sections() {
		out = append(out, s.Name)
	}
	return out
}

func choose(only string) ([]measure.Section, error) {
	if only == "" {
		return sections(), nil
	}
	var out []measure.Section
	for name := range strings.SplitSeq(only, ",") {
		i := slices.Index(names(), strings.TrimSpace(name))
		if i < 0 {
			return nil, fmt.Errorf("--only %s: no such section; have %s", name, strings.Join(names(), ", "))
		}
		out = append(out, sections()[i])
	}
	return out, nil
}

// bench measures sections and reports. What could not be measured is told, and
// does not keep the others from being measured; a goal that was missed is a
// result like others.
func bench(ctx context.Context, chosen []measure.Section, quick, plot bool, profile string) error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	dist := filepath.Join(root, "dist")
	if _, err := os.Stat(filepath.Join(dist, "multipaas")); err != nil {
		return fmt.Errorf("%w: make bench builds it, and runs in the repository's root", err)
	}
	dir, err := os.MkdirTemp("", "multipaas-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	began := time.Now()
	machine, err := measure.ThisMachine()
	if err != nil {
		return err
	}
	env := &measure.Env{Quick: quick, Root: root, Binary: filepath.Join(dist, "multipaas"), Dir: dir, Profile: profile,
		Log: func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "[%4.0f s] "+format+"\n", append([]any{time.Since(began).Seconds()}, args...)...)
		}}
	env.VersionOf(ctx, "multipaas", env.Binary, "--version")
	fmt.Printf("%s, %d cores, %.0f GiB, Linux %s, %s, load before %s\n", machine.CPU, machine.Cores, float64(machine.MemoryBytes)/(1<<30),
		machine.Kernel, machine.System, machine.LoadBefore)
	file := report.File{Machine: machine, Quick: quick}
	var groups []report.Group
	var failures error
	for _, s := range chosen {
		env.Logf("%s", s.Name)
		results, err := s.Run(ctx, env)
		report.Table(os.Stdout, s, results)
		if err != nil {
			err = fmt.Errorf("%s: %w", s.Name, err)
			fmt.Println(err)
			file.Failed = append(file.Failed, s.Name)
		}
		failures = errors.Join(failures, err, file.Add(results))
		groups = append(groups, report.Group{Section: s, Results: results})
		if ctx.Err() != nil {
			break
		}
	}
	failures = errors.Join(failures, env.End())
	file.Versions, file.Seconds = env.Versions(), time.Since(began).Seconds()
	failures = errors.Join(failures, file.Write(filepath.Join(dist, "bench.json")))
	if plot {
		failures = errors.Join(failures, report.Chart(filepath.Join(dist, "bench.svg"), machine, groups))
	}
	fmt.Printf("\n%s\n", goals(groups))
	fmt.Printf("bench: %d numbers in %s, all of them in dist/bench.json\n", len(file.Results), time.Since(began).Round(time.Second))
	return failures
}

// goals is one line about all goals.
func goals(groups []report.Group) string {
	met := 0
	var missed []string
	for _, g := range groups {
		for _, r := range g.Results {
			switch {
			case r.GoalText() == "":
			case r.Met():
				met++
			default:
				missed = append(missed, r.Key())
			}
		}
	}
	line := fmt.Sprintf("goals: %d met, %d missed", met, len(missed))
	if len(missed) > 0 {
		line += ": " + strings.Join(missed, ", ")
	}
	return line
}
