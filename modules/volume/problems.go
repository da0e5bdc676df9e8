package volume

import "github.com/multipaas/multipaas/appliance/problem"

// From which of a pool's room on in use something is said.
const (
	fillingPercent = 80
	fullPercent    = 90
)

const moreRoom = "Make room where the pool is, give it a larger disk, or have volumes deleted: `mp volumes list` shows their use."

// PoolAway is what is said about a pool that is not there.
var PoolAway = problem.Problem{
	Code:     "volume-pool-away",
	Title:    "The disk with volumes is not there",
	Severity: problem.High,
	Text:     "Volumes on it are not made anew, nor anything else in their place: pods that use them wait.",
	Remedy:   "Mount the disk, and look in the kernel's log (`dmesg`) for what is wrong with it.",
}

// PoolFilling is what is said about a pool that has a fifth of its room left.
var PoolFilling = problem.Problem{
	Code:     "volume-pool-filling",
	Title:    "The disk with volumes is four fifths full",
	Severity: problem.Medium,
	Text:     "Volumes take room as they are filled: together they may want more than there is.",
	Remedy:   moreRoom,
}

// PoolFull is what is said about one that has a tenth left.
var PoolFull = problem.Problem{
	Code:     "volume-pool-full",
	Title:    "The disk with volumes is nearly full",
	Severity: problem.High,
	Text:     "When it is full, volumes stop: what is written to them fails, until they are mounted anew.",
	Remedy:   moreRoom,
}

// PoolAiling is what is said about a pool whose disk says that it is not well.
var PoolAiling = problem.Problem{
	Code:     "volume-pool-ailing",
	Title:    "A disk with volumes is not well",
	Severity: problem.High,
	Text: "The disk, or the kernel, says so. Volumes of class shared have copies on other hosts; of those of class local " +
		"this is the only one.",
	Remedy: "Replace the disk before it fails: `mp volumes move` takes local volumes elsewhere; then take the disk away " +
		"(`mp nodes storage remove`), and give the new one (`mp nodes storage add`).",
}
