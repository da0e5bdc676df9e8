package resource

// What there is, in lists that everybody loops over: the kinds of resources and
// what accounts have limits of. A new one is a line here.

// Kinds lists all kinds: the one list of them. Whoever has to do something for
// each kind loops over it and asks the objects what they are.
func Kinds() []Kind {
	return []Kind{
		kindOf[Account](),
		kindOf[Organization](),
		kindOf[User](),
		kindOf[Credential](),
		kindOf[Membership](),
		kindOf[Invitation](),
		kindOf[Invitee](),
		kindOf[Session](),
		kindOf[JoinToken](),
		kindOf[Node](),
		kindOf[Workspace](),
		kindOf[WorkspaceKeys](),
		kindOf[Machine](),
		kindOf[VNI](),
		kindOf[App](),
		kindOf[Route](),
		kindOf[Volume](),
		kindOf[Snapshot](),
		kindOf[Trash](), // behind workspaces and volumes: who looks for what is left finds what moves meanwhile
		kindOf[VolumeKey](),
		kindOf[Balance](),
		kindOf[Task](),
	}
}

// Limits is how much of each thing an account may have, or has, or asks for. As
// a limit 0 stands for the platform's own.
//
// A new dimension is one field here and one row of Dimensions.
type Limits struct {
	Users         int64 `json:"users,omitempty" minimum:"0" doc:"That were made for it"`
	Organizations int64 `json:"organizations,omitempty" minimum:"0"`
	Workspaces    int64 `json:"workspaces,omitempty" minimum:"0"`
	Machines      int64 `json:"machines,omitempty" minimum:"0"`
	Apps          int64 `json:"apps,omitempty" minimum:"0"`
	MilliCPU      int64 `json:"milliCPU,omitempty" minimum:"0" doc:"Thousandths of a CPU, of all machines"`
	MemoryBytes   int64 `json:"memoryBytes,omitempty" minimum:"0" doc:"Of all machines"`
	DiskBytes     int64 `json:"diskBytes,omitempty" minimum:"0" doc:"Of all machines"`
	ImageBytes    int64 `json:"imageBytes,omitempty" minimum:"0" doc:"Of all images in the registry"`
	Volumes       int64 `json:"volumes,omitempty" minimum:"0"`
	VolumeBytes   int64 `json:"volumeBytes,omitempty" minimum:"0" doc:"Of all volumes and snapshots, by what they may grow to"`
	Snapshots     int64 `json:"snapshots,omitempty" minimum:"0" doc:"Of volumes"`
	DatabaseBytes int64 `json:"databaseBytes,omitempty" minimum:"0" doc:"Of the objects in all its clusters, on the servers"`
}

// Dimensions lists the dimensions of Limits. API, configuration and client read
// them here.
func Dimensions() []Dimension {
	return []Dimension{
		{"users", "users", Count, "1000", "users", "users that were made for it", "how many users may be made for it", func(l *Limits) *int64 { return &l.Users }},
		{"organizations", "organizations", Count, "50", "organizations", "organizations", "how many organizations", func(l *Limits) *int64 { return &l.Organizations }},
		// A workspace's plane takes 250 MB of the server.
		{"workspaces", "workspaces", Count, "25", "workspaces", "workspaces", "how many workspaces", func(l *Limits) *int64 { return &l.Workspaces }},
		{"machines", "machines", Count, "100", "machines", "machines in all workspaces", "how many machines in all its workspaces", func(l *Limits) *int64 { return &l.Machines }},
		{"apps", "apps", Count, "500", "apps", "apps in all workspaces", "how many apps", func(l *Limits) *int64 { return &l.Apps }},
		{"milliCPU", "cpu", Thousandths, "400", "CPUs", "CPUs of all machines", "CPUs of all its machines", func(l *Limits) *int64 { return &l.MilliCPU }},
		{"memoryBytes", "memory", Bytes, "1600Gi", "memory", "memory of all machines", "memory of all its machines", func(l *Limits) *int64 { return &l.MemoryBytes }},
		{"diskBytes", "disk", Bytes, "10Ti", "disk", "disk of all machines", "disk of all its machines", func(l *Limits) *int64 { return &l.DiskBytes }},
		{"imageBytes", "images", Bytes, "200Gi", "images", "images in the registry", "what its images may take in the registry", func(l *Limits) *int64 { return &l.ImageBytes }},
		{"volumes", "volumes", Count, "1000", "volumes", "volumes in all workspaces", "how many volumes", func(l *Limits) *int64 { return &l.Volumes }},
		{"volumeBytes", "storage", Bytes, "10Ti", "storage", "storage of all volumes", "what its volumes and snapshots may hold", func(l *Limits) *int64 { return &l.VolumeBytes }},
		{"snapshots", "snapshots", Count, "1000", "snapshots", "snapshots of volumes", "how many snapshots of volumes", func(l *Limits) *int64 { return &l.Snapshots }},
		// A cluster in use takes some 100 MB with its history.
		{"databaseBytes", "databases", Bytes, "10Gi", "databases", "databases of all clusters", "what the databases of its clusters may take on the servers", func(l *Limits) *int64 { return &l.DatabaseBytes }},
	}
}
