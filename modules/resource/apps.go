package resource

import (
	"strings"
	"time"
)

// App is what a tenant deploys into a workspace.
type App struct {
	InWorkspace
	Spec   AppSpec   `json:"spec"`
	Status AppStatus `json:"status" readOnly:"true"`
}

// MaxInstances is the most instances that an app can have.
const MaxInstances = 1000

// AppSpec is what the tenant wants.
type AppSpec struct {
	Namespace string `json:"namespace,omitempty" doc:"Kubernetes namespace" example:"default"`
	// Image is a reference: "hello:1" or "ACCOUNT/ORGANIZATION/hello:1" in the
	// platform's registry, or a full reference to an upstream registry that the
	// operator has opened.
	Image string `json:"image" example:"hello:1"`
	// Release counts the deployments of an image: with each, the platform looks up
	// anew what the reference names, and holds on to that until the next. Scaling,
	// or a change of variables, is none.
	Release   int64             `json:"release,omitempty" minimum:"0" doc:"Counts deployments; none in a PUT is one more"`
	Instances int               `json:"instances" minimum:"0" maximum:"1000"`
	Port      int               `json:"port,omitempty" minimum:"1" maximum:"65535" doc:"Port the app listens on; also its PORT variable"`
	Env       map[string]string `json:"env,omitempty"`
	Command   []string          `json:"command,omitempty"`
	Args      []string          `json:"args,omitempty"`
	// Requests and limits of one instance. Zero: none.
	MilliCPU    int64 `json:"milliCPU,omitempty" minimum:"0"`
	MemoryBytes int64 `json:"memoryBytes,omitempty" minimum:"0"`
	// HealthPath is asked by HTTP to tell whether an instance may get traffic.
	// Empty: a TCP connection to Port must succeed.
	HealthPath string `json:"healthPath,omitempty" example:"/healthz"`
	// Volumes are claims that the app's instances have as folders.
	Volumes []AppVolume `json:"volumes,omitempty" maxItems:"16" doc:"Claims that are its folders; several instances share them all"`
	NoRoute bool        `json:"noRoute,omitempty" doc:"Do not expose the app"`
}

// AppVolume is a claim that an app has as a folder.
type AppVolume struct {
	Claim string `json:"claim" doc:"A PersistentVolumeClaim of the app's namespace" example:"data"`
	Path  string `json:"path" doc:"Where the app sees it" example:"/var/lib/data"`
}

// AppStatus is what the platform sees.
type AppStatus struct {
	State
	InstancesReady int    `json:"instancesReady"`
	Host           string `json:"host,omitempty" example:"hello.shop.web.acme.example"`
	URL            string `json:"url,omitempty"`
	// What the app's image was when it was deployed: ImageDigest and its times are
	// of Image, looked up for Release.
	Image         string    `json:"image,omitempty" doc:"The reference that the digest is of"`
	Release       int64     `json:"release,omitempty" doc:"The release that the digest is of"`
	ImageDigest   string    `json:"imageDigest,omitempty"`
	ImageMadeAt   time.Time `json:"imageMadeAt,omitzero" doc:"When the image was built, as it says itself"`
	ImagePushedAt time.Time `json:"imagePushedAt,omitzero" doc:"When it was pushed under that name"`
	// InstancesApplied is how many the cluster was told to have. ScaledBy is who,
	// past the platform, asked for as many as there are.
	InstancesApplied int    `json:"instancesApplied,omitempty" doc:"How many instances the cluster was told to have"`
	ScaledBy         string `json:"scaledBy,omitempty" doc:"Who set the number of instances in the cluster itself" example:"kubectl"`
}

// The conditions of an app, in the order they come true.
const (
	AppImageFound     = "ImageFound"
	AppDeployed       = "Deployed"
	AppInstancesReady = "InstancesReady"
	AppRouteReady     = "RouteReady"
)

// Kind is "apps".
func (*App) Kind() string { return "apps" }

// State is what its controller says.
func (a *App) State() State { return a.Status.State }

// Asks counts it.
func (a *App) Asks() Limits { return Limits{Apps: 1} }

// Route sends what the balancer gets for one host name to a Kubernetes Service
// of a workspace. Its key is the host name, so no two tenants can have one.
type Route struct {
	Meta             // name: the host name, lower case, no port
	Workspace string `json:"workspace"` // key of the workspace
	App       string `json:"app,omitempty"`
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Port      int    `json:"port" doc:"Target port of the pods"`
	Status    struct {
		Conditions Conditions `json:"conditions,omitempty"`
	} `json:"status"`
}

// RouteReady is the condition of a route that the balancer serves, certificate
// included.
const RouteReady = "Ready"

// Kind is "routes".
func (*Route) Kind() string { return "routes" }

// LeadsWhere says whether r leads where other does. A route has no spec whose
// changes its Generation counts: what was seen of it is about where it led.
func (r *Route) LeadsWhere(other *Route) bool {
	return r.Workspace == other.Workspace && r.Namespace == other.Namespace && r.Service == other.Service && r.Port == other.Port
}

// Task is a view of the work the platform does for one resource: what was asked
// and by whom, its steps with times, its outcome. The work itself is driven by
// the resource's own spec; a lost task loses nothing else.
type Task struct {
	Meta              // name: ACCOUNT-ID, where ID is random and sorts by time
	Spec   TaskSpec   `json:"spec"`
	Status TaskStatus `json:"status"`
}

// TaskSpec is what was asked.
type TaskSpec struct {
	Operation string `json:"operation" example:"workspace.create" doc:"KIND.VERB"`
	// Kind and Target name the resource: "workspaces" and "acme/web/shop".
	Kind       string `json:"kind" example:"workspaces"`
	Target     string `json:"target" example:"acme/web/shop"`
	TargetUID  string `json:"targetUid,omitempty"`
	Account    string `json:"account,omitempty" doc:"Empty for the platform's own"`
	By         string `json:"by" doc:"The user who asked"`
	Generation int64  `json:"generation,omitempty" doc:"The task ends when this generation is reached"`
	// Gone says that the task ends when the resource does.
	Gone bool `json:"gone,omitempty"`
}

// TaskStatus is how far it is.
type TaskStatus struct {
	State   TaskState  `json:"state" enum:"running,done,failed,replaced"`
	Steps   Conditions `json:"steps,omitempty"`
	Message string     `json:"message,omitempty" doc:"Why it failed, and what to do"`
	EndedAt *time.Time `json:"endedAt,omitempty"`
	// ReplacedBy is the name of a later task for the same resource, which does what this
	// one was for as far as it is still wanted.
	ReplacedBy string `json:"replacedBy,omitempty" doc:"The later task of the same resource that goes on in its place"`
}

// Ended says that nothing of t changes any more.
func (t *Task) Ended() bool {
	return t.Status.State == TaskDone || t.Status.State == TaskFailed || t.Status.State == TaskReplaced
}

// TaskState is running, done, failed or replaced.
type TaskState string

// The states of a task.
const (
	TaskRunning  TaskState = "running"
	TaskDone     TaskState = "done"
	TaskFailed   TaskState = "failed"
	TaskReplaced TaskState = "replaced"
)

// PlatformTasks stands for the account in the names of tasks about the platform's own
// resources: no account can be called so.
const PlatformTasks = "_"

// TaskKey is the key of the task with that name: "ACCOUNT/ID" for "ACCOUNT-ID", so that the
// tasks of one account are found without the others'. No ID has a "-" in it.
func TaskKey(name string) string {
	if i := strings.LastIndexByte(name, '-'); i >= 0 {
		return name[:i] + "/" + name[i+1:]
	}
	return name
}

// Key is that of TaskKey.
func (t *Task) Key() string { return TaskKey(t.Name) }

// Kind is "tasks".
func (*Task) Kind() string { return "tasks" }
