package resource

import "time"

// The bodies of API operations that are not resources themselves.

// Register asks for a new account with its first owner.
type Register struct {
	Account  string `json:"account" doc:"Name of the new account" example:"acme"`
	Email    string `json:"email" format:"email"`
	Password string `json:"password" minLength:"10" maxLength:"256"`
}

// Login exchanges a password for a bearer token.
type Login struct {
	Email    string `json:"email"`
	Password string `json:"password" maxLength:"256"`
}

// LoginResult is the token, shown this once.
type LoginResult struct {
	Token     string    `json:"token"`
	User      string    `json:"user"`
	ExpiresAt time.Time `json:"expiresAt"`
	// FirstPassword: everything else is refused until the password is changed.
	FirstPassword bool `json:"firstPassword,omitempty" doc:"Somebody else chose the password: it can only be changed"`
}

// Answer is to an invitation.
type Answer struct {
	Account      string `json:"account" required:"true" maxLength:"57" example:"acme"`
	Organization string `json:"organization,omitempty" maxLength:"57" example:"web" doc:"Empty: an owner of the account is sought"`
	Code         string `json:"code,omitempty" maxLength:"100" doc:"To accept: what its maker was shown"`
}

// Whoami is who a token belongs to and what he may see.
type Whoami struct {
	User        string       `json:"user"`
	Sysadmin    bool         `json:"sysadmin,omitempty"`
	Memberships []Membership `json:"memberships"`
	ExpiresAt   time.Time    `json:"expiresAt"`
}

// Info is what anybody may know about the platform.
type Info struct {
	Version            string   `json:"version"`
	Domain             string   `json:"domain" doc:"Apps are reached below this domain"`
	Registry           string   `json:"registry" doc:"host:port of the registry"`
	KubernetesAPI      string   `json:"kubernetesApi" doc:"host:port that reaches every workspace's API by SNI"`
	KubernetesVersions []string `json:"kubernetesVersions"`
	Registration       string   `json:"registration" enum:"open,sysadmin"`
	CA                 string   `json:"ca" doc:"The platform's certificate authority, PEM"`
}

// Accepted is the answer to a write that the platform now works on.
type Accepted[T any] struct {
	Resource T      `json:"resource"`
	Task     string `json:"task,omitempty" doc:"Id of the task to follow; empty if nothing is left to do"`
}

// List is one page of resources.
type List[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty" doc:"Pass as ?after= to get the next page"`
}

// Namespace is a Kubernetes namespace, as listed by `mp ns list`.
type Namespace struct {
	Name  string `json:"name"`
	Phase string `json:"phase"`
}

// ClusterNode is a Kubernetes node, as listed by `mp cluster list-nodes`.
type ClusterNode struct {
	Name    string `json:"name"`
	Ready   bool   `json:"ready"`
	Version string `json:"version"`
	Address string `json:"address"`
	Node    string `json:"node" doc:"The host it runs on; sysadmins only"`
	Size    Size   `json:"size"`
}

// Claim is a PersistentVolumeClaim of a workspace's cluster, as listed by `mp pvc list`.
type Claim struct {
	Name      string    `json:"name"`
	Namespace string    `json:"namespace"`
	Phase     string    `json:"phase"`
	Class     string    `json:"class" doc:"The StorageClass"`
	Shared    bool      `json:"shared,omitempty" doc:"Pods on several machines may use it at once"`
	SizeBytes int64     `json:"sizeBytes" doc:"What it has; while it has nothing, what it asks for"`
	Volume    string    `json:"volume,omitempty" doc:"The volume that it has"`
	Block     bool      `json:"block,omitempty" doc:"Pods get its raw blocks (volumeDevices), without a file system"`
	Message   string    `json:"message,omitempty" doc:"What it waits for"`
	CreatedAt time.Time `json:"createdAt,omitzero"`
}

// KubeUser is who somebody is in the cluster of a workspace.
type KubeUser struct {
	Name   string
	Groups []string
}

// KubeAccess is what a kubeconfig for a workspace needs; it holds no secret.
type KubeAccess struct {
	Server     string `json:"server" doc:"https://HOST:6443"`
	ServerName string `json:"serverName" doc:"tls-server-name"`
	CA         string `json:"ca" doc:"PEM"`
	Context    string `json:"context" example:"acme-web-shop"`
}

// KubeToken is a short-lived OIDC token for one workspace's API.
type KubeToken struct {
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expiresAt"`
}

// NewJoinToken asks for a join token.
type NewJoinToken struct {
	Role       string `json:"role" enum:"node" default:"node"`
	TTLSeconds int64  `json:"ttlSeconds,omitempty" minimum:"60" maximum:"604800" default:"3600"`
}

// NewJoinTokenResult is the token, shown this once.
type NewJoinTokenResult struct {
	Token     string    `json:"token" doc:"ID.SECRET.CAHASH: pins the platform's CA"`
	Command   string    `json:"command" doc:"What to type on the machine that shall join"`
	ExpiresAt time.Time `json:"expiresAt"`
}

// ImageVersion is what a reference to an image names at some moment.
type ImageVersion struct {
	Digest   string    // "sha256:..."
	MadeAt   time.Time // as the image says itself; zero: it doesn't
	PushedAt time.Time // zero: not known
}

// Image is one repository of the registry.
type Image struct {
	Name      string    `json:"name" example:"acme/web/hello"`
	Tags      []string  `json:"tags"`
	UpdatedAt time.Time `json:"updatedAt,omitzero"`
}
