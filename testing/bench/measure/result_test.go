package measure

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"testing"
)

func TestSummarize(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   Stat
	}{
		{nil, Stat{}},
		{[]float64{3}, Stat{3, 3, 3, 1}},
		{[]float64{9, 1, 2}, Stat{2, 1, 9, 3}},
		{[]float64{4, 1, 2, 9}, Stat{3, 1, 9, 4}},
	} {
		if got := Summarize(c.values...); got != c.want {
			t.Errorf("Summarize(%v) = %+v, want %+v", c.values, got, c.want)
		}
	}
}

func TestPercentile(t *testing.T) {
	var values []float64
	for i := range 100 {
		values = append(values, float64(99-i))
	}
	for p, want := range map[float64]float64{0: 0, 0.5: 50, 0.99: 99, 1: 99} {
		if got := Percentile(values, p); got != want {
			t.Errorf("Percentile(%g) = %g, want %g", p, got, want)
		}
	}
}

func TestGoal(t *testing.T) {
	for _, c := range []struct {
		r    Result
		text string
		met  bool
	}{
		{Result{Better: Higher, Ours: Summarize(60), Peer: "p", PeerStat: Summarize(100), Goal: Goal{Ratio: 0.5}}, "≥0.5x", true},
		{Result{Better: Higher, Ours: Summarize(40), Peer: "p", PeerStat: Summarize(100), Goal: Goal{Ratio: 0.5}}, "≥0.5x", false},
		{Result{Better: Lower, Ours: Summarize(40), Peer: "p", PeerStat: Summarize(100), Goal: Goal{Ratio: 0.5}}, "≤0.5x", true},
		{Result{Better: Lower, Ours: Summarize(60), Peer: "p", PeerStat: Summarize(100), Goal: Goal{Ratio: 0.5}}, "≤0.5x", false},
		{Result{Better: Lower, Unit: "s", Ours: Summarize(11), Goal: Goal{Value: 12}}, "≤12 s", true},
		{Result{Better: Lower, Unit: "s", Ours: Summarize(13), Goal: Goal{Value: 12}}, "≤12 s", false},
		{Result{Better: Lower, Unit: "s", Goal: Goal{Value: 12}}, "≤12 s", false}, // nothing measured
		{Result{Better: Lower, Ours: Summarize(40)}, "", false},
	} {
		if got := c.r.GoalText(); got != c.text {
			t.Errorf("%+v: goal is %q, want %q", c.r, got, c.text)
		}
		if got := c.r.Met(); got != c.met {
			t.Errorf("%+v: met is %t, want %t", c.r, got, c.met)
		}
	}
}

func TestAlternate(t *testing.T) {
	var order []string
	contender := func(name string) Contender {
		return Contender{name, func(context.Context) (Sample, error) {
			order = append(order, name)
			return Sample{"n": float64(len(order))}, nil
		}}
	}
	got, err := Alternate(t.Context(), 3, contender("a"), contender("b"))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "b", "b", "a", "a", "b"}; !slices.Equal(order, want) {
		t.Errorf("order is %v, want %v", order, want)
	}
	if want := (Stat{4, 1, 5, 3}); got["a"]["n"] != want {
		t.Errorf("a is %+v, want %+v", got["a"]["n"], want)
	}
}

func TestTreeOfProcesses(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "sleep 600 & sleep 600 & wait")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var tree []int
	for len(tree) < 3 && t.Context().Err() == nil {
		var err error
		if tree, err = Tree(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, pid := range slices.Backward(tree) {
			if p, err := os.FindProcess(pid); err == nil {
				p.Kill()
			}
		}
		cmd.Wait()
	})
	m, err := MemoryOf(cmd.Process.Pid)
	if err != nil || m.Anonymous == 0 || m.Resident < m.Anonymous {
		t.Errorf("memory is %+v, %v", m, err)
	}
	if cpu, err := CPU(os.Getpid()); err != nil || cpu < 0 {
		t.Errorf("cpu is %s, %v", cpu, err)
	}
}
