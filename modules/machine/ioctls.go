package machine

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What ioctl is asked for has a family in its second byte. Three are refused, all in them but what is named here:
//
// familyBlocks is of block devices (linux/fs.h, blkpg.h, blktrace_api.h). Of these pods have raw blocks, and by BLKTRACESETUP who
// has one open takes the host's memory, counted for nobody, and by BLKPG and BLKRRPART he has the kernel look at partitions.
//
// familyLoops is of loop devices (linux/loop.h), as raw blocks are: who has one open could give it another file, or its
// number back.
//
// familyNamespaces is of namespaces (linux/nsfs.h). By NS_MNT_GET_INFO, _NEXT and _PREV (0xb70a to 0xb70c) root walks to all
// mounts that his user namespace owns, a shared volume's client's among them (embed/gluster), whose process has the host's key
// for shared volumes. Linux before e6b899f08066 lets him. What is below 0xb708 is for all, and what comes later is not known.
const (
	familyBlocks     = 0x12
	familyLoops      = 0x4c
	familyNamespaces = 0xb7
)

// blockCalls are what may be asked of raw blocks: what programs that use them do, and what changes no more than writing does.
// Two hold the size of a word, and are others for programs of 32 bits. BLKFLSBUF isn't, which wants the host's root.
var blockCalls = []uint64{
	unix.BLKROGET, unix.BLKGETSIZE, unix.BLKRAGET, unix.BLKSECTGET, unix.BLKSSZGET, unix.BLKPBSZGET, unix.BLKIOMIN, unix.BLKIOOPT,
	unix.BLKALIGNOFF, unix.BLKROTATIONAL,
	0x8008_1270, 0x8004_1270, // BLKBSZGET
	0x8008_1272, 0x8004_1272, // BLKGETSIZE64
	0x1277, 0x127c, 0x127f, // BLKDISCARD, BLKDISCARDZEROES, BLKZEROOUT
	0x8008_1280, 0x8004_1284, 0x8004_1285, // BLKGETDISKSEQ, BLKGETZONESZ, BLKGETNRZONES
}

// ioctls are the rules by which ioctl may be called. Each allows what has the bits of a mask so, and none what another does. The
// kernel takes the low 32 bits of what is asked for, so no rule looks at the others.
func ioctls() (rules []specs.LinuxSeccompArg) {
	allow := func(mask, value uint64) {
		rules = append(rules, specs.LinuxSeccompArg{Index: 1, Value: mask, ValueTwo: value, Op: specs.OpMaskedEqual})
	}
	// There is no "unless": families are halved until none in a half is refused.
	refused := []uint64{familyBlocks, familyLoops, familyNamespaces}
	var halve func(mask, value uint64)
	halve = func(mask, value uint64) {
		some := false
		for _, family := range refused {
			some = some || family&mask == value
		}
		switch {
		case !some:
			allow(mask<<8, value<<8)
		case mask != 0xff:
			next := (mask>>1 | 0x80) &^ mask // the highest bit that is open
			halve(mask|next, value)
			halve(mask|next, value|next)
		}
	}
	halve(0, 0)
	allow(0xfff8, familyNamespaces<<8)
	for _, call := range blockCalls {
		allow(0xffff_ffff, call)
	}
	return rules
}
