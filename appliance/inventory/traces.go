package inventory

import "maps"

// Traces are what a package makes on hosts, and whose it is. The package that
// makes it says so; the composition root collects.
type Traces struct {
	// Folders are those in which each entry is somebody's, by its name.
	Folders []OwnedFolder
	// Groups are control groups in which each is somebody's, by its name.
	Groups map[string]func(name string) Owner
	// Trees are folders in which each folder is the appliance's own.
	Trees []string
	// Closed are folders whose inside is their owner's business.
	Closed []string
	// Temporary are folders in which everything is temporary.
	Temporary []string
	// Count counts what is not worth an item each: numbers are exact, gauges vary by
	// themselves. nil: nothing.
	Count   func(number, gauge map[string]int64)
	Network *NetworkNames
}

// OwnedFolder is a folder whose entries are named after their owners.
type OwnedFolder struct {
	Dir   string
	Owner func(name string) Owner
	// HalfWritten says that temporary files may stand in the entries, which are
	// closed otherwise.
	HalfWritten bool
}

// NetworkNames are how the workspaces' networks are told from others'.
type NetworkNames struct {
	Workspace     string   // prefix of a workspace's namespace, before its id
	Machine       string   // prefix of a machine's namespace, before its UID
	Uplink        string   // prefix of the host's end of a workspace's uplink
	Port          string   // prefix of a machine's port on the bridge
	Links         []string // in a workspace's namespace, other than ports
	MachineLink   string   // in a machine's namespace: others there are pods'
	Tables        []string // firewall tables in the host's namespace
	RouteProtocol int
}

// merged is everything that all of them say.
func merged(all []Traces) Traces {
	out := Traces{Groups: map[string]func(string) Owner{}, Network: &NetworkNames{}}
	var counts []func(number, gauge map[string]int64)
	for _, t := range all {
		out.Folders = append(out.Folders, t.Folders...)
		maps.Copy(out.Groups, t.Groups)
		out.Trees = append(out.Trees, t.Trees...)
		out.Closed = append(out.Closed, t.Closed...)
		out.Temporary = append(out.Temporary, t.Temporary...)
		if t.Count != nil {
			counts = append(counts, t.Count)
		}
		if t.Network != nil {
			out.Network = t.Network
		}
	}
	out.Count = func(number, gauge map[string]int64) {
		for _, count := range counts {
			count(number, gauge)
		}
	}
	return out
}
