package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// part is a target of make.
type part struct {
	name   string
	stage  string
	lane   string // in the stage; "" if the stage has one
	budget time.Duration
}

// readBudget reads the parts that a file lists: all, or the wanted ones, in the
// file's order. A line is: target, stage and lane such as "2" or "3a", seconds.
func readBudget(file string, wanted []string) ([]part, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all []part
	for number, line := range strings.Split(string(data), "\n") {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 3 {
			return nil, fmt.Errorf("%s:%d: want target, lane and seconds", file, number+1)
		}
		seconds, err := strconv.Atoi(fields[2])
		if err != nil || seconds < 1 {
			return nil, fmt.Errorf("%s:%d: %q is no number of seconds", file, number+1, fields[2])
		}
		p := part{
			name:   fields[0],
			stage:  fields[1][:1],
			lane:   fields[1][1:],
			budget: time.Duration(seconds) * time.Second,
		}
		if slices.ContainsFunc(all, func(o part) bool { return o.name == p.name }) {
			return nil, fmt.Errorf("%s:%d: %s stands twice", file, number+1, p.name)
		}
		if len(all) > 0 && all[len(all)-1].stage > p.stage {
			return nil, fmt.Errorf("%s:%d: stage %s comes after stage %s", file, number+1, p.stage, all[len(all)-1].stage)
		}
		all = append(all, p)
	}
	for _, name := range wanted {
		if !slices.ContainsFunc(all, func(p part) bool { return p.name == name }) {
			return nil, fmt.Errorf("%s does not list %s", file, name)
		}
	}
	if len(wanted) == 0 {
		return all, nil
	}
	return slices.DeleteFunc(all, func(p part) bool { return !slices.Contains(wanted, p.name) }), nil
}

// split splits parts, in their order, by what a function says of each.
func split(parts []part, by func(part) string) [][]part {
	var (
		keys []string
		all  [][]part
	)
	for _, p := range parts {
		i := slices.Index(keys, by(p))
		if i < 0 {
			i, keys, all = len(keys), append(keys, by(p)), append(all, nil)
		}
		all[i] = append(all[i], p)
	}
	return all
}

// A part may take this many times its budget, if the machine did nothing else.
const tolerance = 2

// A machine is idle while others use less of its processors. What runs on a
// developer's desktop or beside a CI job takes 2 to 5 %, one compiler on two
// processors 50.
const idleBelow = 0.10

// verdict judges how long a part took: whether it failed by it, and what there
// is to say. Others is which part of the processors others used meanwhile.
func verdict(took, budget time.Duration, others float64) (failed bool, say string) {
	switch {
	case took <= tolerance*budget:
		return false, ""
	case others >= idleBelow:
		return false, fmt.Sprintf("slow, but others used %.0f %% of the processors", 100*others)
	}
	return true, fmt.Sprintf("more than %d times its budget", tolerance)
}
