// Package resource holds the typed resources of the platform: what the store
// keeps, what the API shows and what controllers compare. It holds types,
// their names and their validation, and nothing that acts.
//
// Parties: the API writes Spec, the controller that owns a kind writes Status,
// the node agent reports what it sees through the API. Every module may import
// this package; it imports nothing of ours.
package resource

import "time"

// Meta is what every resource has. The key of a resource in its kind is the
// path of names that leads to it, "acme/web/shop" for a workspace, so that an
// object can only be found under the account that owns it.
type Meta struct {
	// Name is an RFC 1123 label, unique among its siblings; the e-mail address
	// for a user, a random id for tokens and tasks.
	Name string `json:"name" doc:"Name, unique among its siblings" example:"shop"`
	// UID stays the same for the life of this resource and is never used again.
	UID string `json:"uid,omitempty" readOnly:"true" doc:"Unique for all time"`
	// Revision is the store's revision of the last write. Zero: not stored yet.
	// It is the ETag of the API. The store fills it when reading.
	Revision int64 `json:"revision,omitempty" readOnly:"true" doc:"Changes with every write; the ETag"`
	// Generation counts the changes of Spec.
	Generation int64     `json:"generation,omitempty" readOnly:"true" doc:"Counts changes of spec"`
	CreatedAt  time.Time `json:"createdAt,omitzero" readOnly:"true"`
	// DeletedAt is when deletion was asked for. The resource goes when its
	// controller has cleaned up behind it.
	DeletedAt *time.Time `json:"deletedAt,omitempty" readOnly:"true" doc:"Set while the resource is being deleted"`
}

// Metadata gives the store access to the Meta of any resource.
func (m *Meta) Metadata() *Meta { return m }

// Deleting says that deletion was asked for.
func (m *Meta) Deleting() bool { return m.DeletedAt != nil }

// Scope is Platform, unless the kind embeds another scope.
func (m *Meta) Scope() Scope { return Platform }

// Key is the name, for the platform's own kinds.
func (m *Meta) Key() string { return m.Name }

// Object is a resource as the store handles it.
type Object interface {
	Metadata() *Meta
	// Key is the path of names to the resource inside its kind.
	Key() string
	// Kind is the name of the kind, such as "workspaces".
	Kind() string
	// Scope says what the key begins with.
	Scope() Scope
}

// Condition is one thing that is, or is not yet, so about a resource. The steps
// of a task are the conditions of its resource, in the order they were added.
type Condition struct {
	Type   string          `json:"type" example:"PlaneReady"`
	Status ConditionStatus `json:"status" enum:"True,False,Unknown"`
	// Reason is one CamelCase word for programs; Message is a sentence for people.
	Reason  string    `json:"reason,omitempty"`
	Message string    `json:"message,omitempty"`
	Since   time.Time `json:"since,omitzero" doc:"When status last changed"`
	// Final says that waiting will not mend it: a task that waits for this
	// condition has failed.
	Final bool `json:"final,omitempty"`
}

// ConditionStatus is "True", "False" or "Unknown".
type ConditionStatus string

// The states of a condition.
const (
	True    ConditionStatus = "True"
	False   ConditionStatus = "False"
	Unknown ConditionStatus = "Unknown"
)

// Conditions is the list of conditions in a Status.
type Conditions []Condition

// Set adds or changes the condition c.Type and reports whether anything
// changed. Since is kept while Status stays the same.
func (cs *Conditions) Set(c Condition) bool {
	old := cs.Get(c.Type)
	if old != nil && old.Status == c.Status {
		c.Since = old.Since
	} else if c.Since.IsZero() {
		c.Since = time.Now().UTC()
	}
	if old == nil {
		*cs = append(*cs, c)
		return true
	}
	changed := *old != c
	*old = c
	return changed
}

// Get returns the condition of type t, or nil.
func (cs Conditions) Get(t string) *Condition {
	for i := range cs {
		if cs[i].Type == t {
			return &cs[i]
		}
	}
	return nil
}

// Is says whether condition t is there and True.
func (cs Conditions) Is(t string) bool {
	c := cs.Get(t)
	return c != nil && c.Status == True
}

// Phase is one word for people on where a resource is in its life. Programs
// read conditions instead.
type Phase string

// The phases that resources share.
const (
	Pending  Phase = "Pending"
	Creating Phase = "Creating"
	Updating Phase = "Updating"
	Ready    Phase = "Ready"
	Degraded Phase = "Degraded"
	Deleting Phase = "Deleting"
	Failed   Phase = "Failed"
)
