package appliance

import (
	"os"
	"runtime/debug"

	"github.com/multipaas/multipaas/appliance/cgroup"
)

const (
	// serverMemory and nodeMemory are what part of the machine's memory, or of what the
	// init system's unit may take, the collector of this process works towards. A
	// server shares its machine with planes, which have bounds of their own, and a node
	// with machines, which have all but a little.
	serverMemory, nodeMemory = 2, 8
	// leastMemory is what a server takes that has few tenants.
	leastMemory = 256 << 20
)

// limitMemory has garbage collected sooner when the process comes near one of so many
// parts of the memory that there is. It is no wall: what is in use stays. GOMEMLIMIT,
// if the operator has set it, is left alone.
func (b *base) limitMemory(parts int64) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	bound, err := cgroup.MemoryBound()
	if err != nil {
		b.log.Warn("the memory of this machine is not known: the collector of garbage has no limit", "err", err)
		return
	}
	limit := max(bound/parts, leastMemory)
	debug.SetMemoryLimit(limit)
	b.log.Info("memory limit", "bytes", limit)
}
