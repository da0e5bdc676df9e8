package appliance

import (
	"strconv"

	quantity "k8s.io/apimachinery/pkg/api/resource"

	"github.com/multipaas/multipaas/modules/resource"
)

// LimitSettings are the most one account may have, unless a sysadmin sets
// otherwise for it with `mp accounts set`.
type LimitSettings struct {
	Users         int64  `yaml:"users" doc:"how many users may be made for it"`
	Organizations int64  `yaml:"organizations" doc:"how many organizations"`
	Workspaces    int64  `yaml:"workspaces" doc:"how many workspaces"`
	Machines      int64  `yaml:"machines" doc:"how many machines in all its workspaces"`
	Apps          int64  `yaml:"apps" doc:"how many apps"`
	CPU           string `yaml:"cpu" doc:"CPUs of all its machines"`
	Memory        string `yaml:"memory" doc:"memory of all its machines"`
	Disk          string `yaml:"disk" doc:"disk of all its machines"`
	Images        string `yaml:"images" doc:"what its images may take in the registry"`
}

// A workspace's plane takes 250 MB of the server.
func defaultLimits() LimitSettings {
	return LimitSettings{
		Users:         1000,
		Organizations: 50,
		Workspaces:    25,
		Machines:      100,
		Apps:          500,
		CPU:           "400",
		Memory:        "1600Gi",
		Disk:          "10Ti",
		Images:        "200Gi",
	}
}

// Limits are the limits that can be read; Check says which can't.
func (s LimitSettings) Limits() resource.Limits {
	amount := func(text string, value func(*quantity.Quantity) int64) int64 {
		q, err := quantity.ParseQuantity(text)
		if err != nil {
			return 0
		}
		return value(&q)
	}
	return resource.Limits{
		Users:         s.Users,
		Organizations: s.Organizations,
		Workspaces:    s.Workspaces,
		Machines:      s.Machines,
		Apps:          s.Apps,
		MilliCPU:      amount(s.CPU, (*quantity.Quantity).MilliValue),
		MemoryBytes:   amount(s.Memory, (*quantity.Quantity).Value),
		DiskBytes:     amount(s.Disk, (*quantity.Quantity).Value),
		ImageBytes:    amount(s.Images, (*quantity.Quantity).Value),
	}
}

// Check says what is wrong with s.
func (s LimitSettings) Check(fail func(field, value, wrong, remedy string)) {
	for field, text := range map[string]string{"cpu": s.CPU, "memory": s.Memory, "disk": s.Disk, "images": s.Images} {
		if q, err := quantity.ParseQuantity(text); err != nil || q.Sign() <= 0 {
			fail(field, text, "not an amount", "write it like 400 (CPUs), 64Gi or 2Ti")
		}
	}
	for field, value := range map[string]int64{"users": s.Users, "organizations": s.Organizations, "workspaces": s.Workspaces,
		"machines": s.Machines, "apps": s.Apps} {
		if value < 1 {
			fail(field, strconv.FormatInt(value, 10), "not a limit", "use a number from 1 on")
		}
	}
}
