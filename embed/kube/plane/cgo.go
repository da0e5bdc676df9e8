//go:build cgo

package plane

// With cgo, kine takes another SQLite library than ours: two in one process undo each
// other's POSIX locks on the same file (SQLite's "How To Corrupt An SQLite Database
// File", 2.2), and acknowledged writes are lost. TestKilledAroundCompactions shows it within
// a second. So there is no such build: this name is declared nowhere.
var _ = build_with_CGO_ENABLED_0
