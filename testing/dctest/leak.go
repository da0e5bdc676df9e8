package dctest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/appliance/inventory"
)

// Leak is what there is more of in a later inventory.
type Leak struct {
	What          string // such as "mount /var/lib/multipaas/machines/…"
	Before, After int64
	Items         []inventory.Item // those that may be the ones too many; none for a number
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
func Compare(before, after inventory.Inventory) []Leak {
	had, has := map[string]int64{}, map[string][]inventory.Item{}
	for _, i := range before.Items {
		had[like(i)]++
	}
	for _, i := range after.Items {
		has[like(i)] = append(has[like(i)], i)
	}
	var leaks []Leak
	for what, items := range has {
		if int64(len(items)) > had[what] {
			leaks = append(leaks, Leak{What: what, Before: had[what], After: int64(len(items)), Items: items})
		}
	}
	for name, n := range after.Number {
		// A kind's number is the sum of what was compared above, and may stay
		// though one thing went and another came.
		if n > before.Number[name] && name != taskRecords && inventory.Kind(name).Order() < 0 {
			leaks = append(leaks, Leak{What: name, Before: before.Number[name], After: n})
		}
	}
	slices.SortFunc(leaks, func(a, b Leak) int { return cmp.Compare(a.What, b.What) })
	return leaks
}

// taskRecords is the number of etcd's records of tasks: bounded, not constant.
const taskRecords = "etcd keys below /multipaas/tasks"

// like is the same for items that take each other's place.
func like(i inventory.Item) string { return string(i.Kind) + " " + cmp.Or(i.Like, i.Name) }
