package resource

import (
	"slices"
	"strings"
)

// Scope says where in the tenancy tree the resources of a kind stand, and so how
// many names their keys have.
type Scope string

// The scopes. A kind has one by what it embeds: Meta, InAccount, InOrganization
// or InWorkspace.
const (
	Platform       Scope = "platform"
	OfAccount      Scope = "account"
	OfOrganization Scope = "organization"
	OfWorkspace    Scope = "workspace"
)

// Parent returns the key of the account, organization or workspace that the
// resource with this key stands in; "" for the platform's own, and for a key
// that is too short.
func (s Scope) Parent(key string) string {
	names := map[Scope]int{OfAccount: 1, OfOrganization: 2, OfWorkspace: 3}[s]
	parts := strings.Split(key, "/")
	if names == 0 || len(parts) <= names {
		return ""
	}
	return strings.Join(parts[:names], "/")
}

// Place returns the kind of what resources of this scope stand in, which is
// called as the scope is; there is none for the platform's own.
func (s Scope) Place() (Kind, bool) {
	for _, k := range Kinds() {
		if k.Name == string(s)+"s" {
			return k, true
		}
	}
	return Kind{}, false
}

// Kind describes one kind of resource.
type Kind struct {
	Name  string        // "apps": in keys, tasks and paths of the API
	Scope Scope         //
	New   func() Object // an empty one
}

// Counted are the kinds that count in limits: those that tenants make and
// delete. Nothing but these is found in a place that goes. What else stands in
// one, such as a role or a machine, belongs to the place: what takes the place
// away removes that kind too, and TestNoKindIsLeftBehind has a list of what does.
func Counted() []Kind {
	return slices.DeleteFunc(Kinds(), func(k Kind) bool {
		_, counts := k.New().(Asker)
		return !counts
	})
}

func kindOf[V any, P interface {
	*V
	Object
}]() Kind {
	none := P(new(V))
	return Kind{Name: none.Kind(), Scope: none.Scope(), New: func() Object { return P(new(V)) }}
}

// InAccount is embedded by kinds that stand in an account.
type InAccount struct {
	Meta
	Account string `json:"account" readOnly:"true"`
}

// NewInAccount names a resource in an account.
func NewInAccount(account, name string) InAccount {
	return InAccount{Meta: Meta{Name: name}, Account: account}
}

// Scope is OfAccount.
func (*InAccount) Scope() Scope { return OfAccount }

// Key is "ACCOUNT/NAME".
func (o *InAccount) Key() string { return o.Account + "/" + o.Name }

// InOrganization is embedded by kinds that stand in an organization.
type InOrganization struct {
	Meta
	Account      string `json:"account" readOnly:"true"`
	Organization string `json:"organization" readOnly:"true"`
}

// NewInOrganization names a resource in the organization with this key.
func NewInOrganization(organization, name string) InOrganization {
	account, organization, _ := strings.Cut(organization, "/")
	return InOrganization{Meta: Meta{Name: name}, Account: account, Organization: organization}
}

// Scope is OfOrganization.
func (*InOrganization) Scope() Scope { return OfOrganization }

// Key is "ACCOUNT/ORGANIZATION/NAME".
func (o *InOrganization) Key() string { return o.Account + "/" + o.Organization + "/" + o.Name }

// InWorkspace is embedded by kinds that stand in a workspace.
type InWorkspace struct {
	Meta
	Account      string `json:"account" readOnly:"true"`
	Organization string `json:"organization" readOnly:"true"`
	Workspace    string `json:"workspace" readOnly:"true"`
}

// NewInWorkspace names a resource in the workspace with this key.
func NewInWorkspace(workspace, name string) InWorkspace {
	account, rest, _ := strings.Cut(workspace, "/")
	organization, workspace, _ := strings.Cut(rest, "/")
	return InWorkspace{Meta: Meta{Name: name}, Account: account, Organization: organization, Workspace: workspace}
}

// Scope is OfWorkspace.
func (*InWorkspace) Scope() Scope { return OfWorkspace }

// Key is "ACCOUNT/ORGANIZATION/WORKSPACE/NAME".
func (o *InWorkspace) Key() string { return o.WorkspaceKey() + "/" + o.Name }

// WorkspaceKey is the key of the workspace it stands in.
func (o *InWorkspace) WorkspaceKey() string {
	return o.Account + "/" + o.Organization + "/" + o.Workspace
}

// State is what a controller says of each resource it works for. A kind that has
// one embeds it in its status.
type State struct {
	Phase              Phase      `json:"phase,omitempty"`
	ObservedGeneration int64      `json:"observedGeneration,omitempty"`
	Conditions         Conditions `json:"conditions,omitempty"`
}

// Stateful is a resource that a controller works for. Tasks can be about it.
type Stateful interface {
	Object
	State() State
}

// Asker is a resource that counts in the limits of its account.
type Asker interface {
	Object
	// Asks is what it takes of them as it is wanted.
	Asks() Limits
}
