package inventory

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Leak is what there is more of in a later inventory.
type Leak struct {
	What          string // such as "mount /var/lib/multipaas/machines/…"
	Before, After int64
	Items         []Item // those that may be the ones too many; none for a number
}

func (l Leak) String() string {
	var names []string
	for _, i := range l.Items {
		names = append(names, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", i.Namespace, i.Name, i.Owner, i.Detail)))
	}
	text := fmt.Sprintf("%s: %d before, %d after", l.What, l.Before, l.After)
	if len(names) > 0 {
		text += ": " + strings.Join(names[:min(len(names), 5)], "; ")
	}
	return text
}

// Compare returns what after has more of than before: things that nothing in
// before is like, and counts that have grown. Gauges are left out, and so are
// etcd's records of tasks, which are kept for a while on purpose. No leaks: nil.
func Compare(before, after Inventory) []Leak {
	had, has := map[string]int64{}, map[string][]Item{}
	for _, i := range before.Items {
		had[i.like()]++
	}
	for _, i := range after.Items {
		has[i.like()] = append(has[i.like()], i)
	}
	var leaks []Leak
	for like, items := range has {
		if int64(len(items)) > had[like] {
			leaks = append(leaks, Leak{What: like, Before: had[like], After: int64(len(items)), Items: items})
		}
	}
	for name, n := range after.Number {
		// A kind's number is the sum of what was compared above, and may stay
		// though one thing went and another came.
		if n > before.Number[name] && name != TaskRecords && Kind(name).Order() < 0 {
			leaks = append(leaks, Leak{What: name, Before: before.Number[name], After: n})
		}
	}
	slices.SortFunc(leaks, func(a, b Leak) int { return cmp.Compare(a.What, b.What) })
	return leaks
}

// TaskRecords is the number of etcd's records of tasks: bounded, not constant.
const TaskRecords = "etcd keys below /multipaas/tasks"
