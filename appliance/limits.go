package appliance

import (
	"strconv"

	quantity "k8s.io/apimachinery/pkg/api/resource"

	"github.com/multipaas/multipaas/appliance/config"
	"github.com/multipaas/multipaas/modules/resource"
)

// LimitSettings are the most one account may have, unless a sysadmin sets
// otherwise for it with `mp accounts set`: a setting for each of
// resource.Dimensions, a number for a count and a text for an amount.
type LimitSettings struct{ config.List }

func defaultLimits() (s LimitSettings) {
	for _, d := range resource.Dimensions() {
		l := config.Listed{Name: d.Setting, Doc: d.SettingDoc, Value: new(d.Default)}
		if d.Unit == resource.Count {
			n, _ := strconv.ParseInt(d.Default, 10, 64) // Check refuses 0
			l.Value = &n
		}
		s.List = append(s.List, l)
	}
	return s
}

// Limits are the limits that can be read; Check says which can't.
func (s LimitSettings) Limits() (l resource.Limits) {
	for i, d := range resource.Dimensions() {
		switch v := s.List[i].Value.(type) {
		case *int64:
			*d.Of(&l) = *v
		case *string:
			q, _ := quantity.ParseQuantity(*v) // 0 if it can't be read
			*d.Of(&l) = q.Value()
			if d.Unit == resource.Thousandths {
				*d.Of(&l) = q.MilliValue()
			}
		}
	}
	return l
}

// Check says what is wrong with s.
func (s LimitSettings) Check(fail func(field, value, wrong, remedy string)) {
	for _, l := range s.List {
		switch v := l.Value.(type) {
		case *int64:
			if *v < 1 {
				fail(l.Name, strconv.FormatInt(*v, 10), "not a limit", "use a number from 1 on")
			}
		case *string:
			if q, err := quantity.ParseQuantity(*v); err != nil || q.Sign() <= 0 {
				fail(l.Name, *v, "not an amount", "write it like 400 (CPUs), 64Gi or 2Ti")
			}
		}
	}
}
