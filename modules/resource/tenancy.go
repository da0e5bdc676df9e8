package resource

import (
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// Account is a company or a person: the top of the tenancy tree and the border
// between tenants.
type Account struct {
	Meta
	Spec AccountSpec `json:"spec,omitzero"`
	// Users is written in the commit that makes one or deletes one.
	Users int64 `json:"users,omitempty" readOnly:"true" doc:"How many users were made for it"`
	// Grants counts what was granted. Whoever grants writes it in the same
	// commit, so that of two grants that would both fit, but not together, one
	// is decided anew.
	Grants int64 `json:"grants,omitempty" hidden:"true"`
}

// AccountSpec is what a sysadmin sets about an account.
type AccountSpec struct {
	Limits Limits `json:"limits,omitzero" doc:"The most the account may have; what is left out is as the platform says"`
	// Domains are those of e-mail addresses, in lower case; what is below one belongs
	// to it. No two accounts have the same.
	Domains []string `json:"domains,omitempty" doc:"Only this account may make users with addresses in these domains, or below"`
}

// Kind is "accounts".
func (*Account) Kind() string { return "accounts" }

// Organization is a team inside an account; it owns workspaces, images and
// domains.
type Organization struct{ InAccount }

// Kind is "organizations".
func (*Organization) Kind() string { return "organizations" }

// Asks counts it.
func (*Organization) Asks() Limits { return Limits{Organizations: 1} }

// User is a person or a robot that logs in. Name is the e-mail address in
// lower case. The password hash is in a Credential, never here.
type User struct {
	Meta
	// Account is which account he was made for, and counts in. It gives no right to
	// anybody. Empty: he counts nowhere, since a sysadmin made him for none, he
	// registered himself, or he is from before accounts had a limit of users.
	Account string `json:"account,omitempty" readOnly:"true" doc:"The account that the user was made for: he counts there"`
	// AccountUID tells it from a later account of the same name.
	AccountUID string `json:"accountUID,omitempty" readOnly:"true"`
	CreatedBy  string `json:"createdBy,omitempty" readOnly:"true" doc:"Who made the user; empty: he registered himself"`
	// FirstPassword is written in the commit that sets the password.
	FirstPassword bool     `json:"firstPassword,omitempty" readOnly:"true" doc:"Chosen by somebody else: it can only be changed"`
	Spec          UserSpec `json:"spec"`
}

// UserSpec is what an administrator sets about a user.
type UserSpec struct {
	DisplayName string `json:"displayName,omitempty"`
	Sysadmin    bool   `json:"sysadmin,omitempty" doc:"May do everything on the platform"`
	Disabled    bool   `json:"disabled,omitempty"`
}

// Kind is "users".
func (*User) Kind() string { return "users" }

// Credential is the password hash of a user. No API operation returns one.
type Credential struct {
	Meta
	// Hash is in PHC format: $argon2id$v=19$m=...
	Hash string `json:"hash"`
	// InFile says that the password stands in a file of the server: that of the first
	// sysadmin, until he changes it.
	InFile bool `json:"inFile,omitempty"`
}

// Kind is "credentials".
func (*Credential) Kind() string { return "credentials" }

// Role is what a user may do in an account or an organization.
type Role string

// The roles, from most to least. Owner is of an account; Admin and Developer
// are of an organization. A sysadmin is a User with Spec.Sysadmin.
const (
	RoleOwner     Role = "owner"
	RoleAdmin     Role = "admin"
	RoleDeveloper Role = "developer"
)

// Membership gives a user a role in an account (Organization empty, role
// owner) or in one organization of it (role admin or developer).
type Membership struct {
	Meta
	Account      string `json:"account" readOnly:"true"`
	Organization string `json:"organization,omitempty" readOnly:"true"`
	Role         Role   `json:"role" enum:"owner,admin,developer"`

	// What follows is said by the API, and not stored.

	UserAccount string `json:"userAccount,omitempty" readOnly:"true" doc:"The account that the user counts in; empty: in none"`
	UserBy      string `json:"userBy,omitempty" readOnly:"true" doc:"Who made the user; empty: he registered himself"`
	// Offer is there if the role waits to be accepted.
	Offer *Offer `json:"offer,omitempty" readOnly:"true" doc:"The role is not given yet: the user has to accept it, with this code"`
}

// Offer is what the maker of an invitation hands on.
type Offer struct {
	Code      string    `json:"code" doc:"Shown this once; who has it, and is that user, may accept"`
	ExpiresAt time.Time `json:"expiresAt"`
}

// Key is "ACCOUNT/-/USER" for an account, "ACCOUNT/ORGANIZATION/USER" else.
// No organization can be called "-": it is no RFC 1123 label.
func (m *Membership) Key() string {
	org := m.Organization
	if org == "" {
		org = "-"
	}
	return m.Account + "/" + org + "/" + m.Name
}

// Kind is "memberships".
func (*Membership) Kind() string { return "memberships" }

// Scope is an organization's, of which "-" stands for the account itself.
func (*Membership) Scope() Scope { return OfOrganization }

// Invitation offers a role to a user of another account: he may accept it
// himself, with a code that its maker hands him. The address alone would not do:
// anybody may have made a user of that address. So there may be an invitation
// also while there is no such user. Its name is the user's.
type Invitation struct {
	Meta
	Account      string    `json:"account" readOnly:"true"`
	Organization string    `json:"organization,omitempty" readOnly:"true"`
	Role         Role      `json:"role" enum:"owner,admin,developer"`
	By           string    `json:"by" doc:"Who made it; it is worth nothing once he may not give that role any more"`
	ExpiresAt    time.Time `json:"expiresAt"`
	// UserUID is whom it was made for, if there was such a user: a later one of that
	// address is somebody else.
	UserUID string `json:"userUID,omitempty" hidden:"true"`
	// CodeHash is the SHA-256 of the code, in hex.
	CodeHash string `json:"codeHash,omitempty" hidden:"true"`
}

// Key is that of the membership which it becomes.
func (i *Invitation) Key() string { return i.Membership().Key() }

// Membership is what it becomes when it is accepted.
func (i *Invitation) Membership() *Membership {
	return &Membership{Meta: Meta{Name: i.Name}, Account: i.Account, Organization: i.Organization, Role: i.Role}
}

// Kind is "invitations".
func (*Invitation) Kind() string { return "invitations" }

// Scope is as that of memberships.
func (*Invitation) Scope() Scope { return OfOrganization }

// Invitee is where a user finds his invitations. Its name is his address.
type Invitee struct {
	Meta
	// Invitations are keys, the latest last. One may be gone.
	Invitations []string `json:"invitations"`
}

// Kind is "invitees".
func (*Invitee) Kind() string { return "invitees" }

// Session is a login. Its name is the SHA-256 of the bearer token, in hex: the
// token itself is stored nowhere. It begins with its user's SessionPrefix.
type Session struct {
	Meta
	User      string    `json:"user"`
	ExpiresAt time.Time `json:"expiresAt"`
}

// Kind is "sessions".
func (*Session) Kind() string { return "sessions" }

// Key is "PREFIX/NAME", so that those of one user are found without the others'.
func (s *Session) Key() string { return SessionPrefix(s.User) + "/" + s.Name }

// SessionPrefix stands for a user in the keys of his sessions and in his tokens,
// which shall not name him: 12 characters.
func SessionPrefix(user string) string {
	sum := sha256.Sum256([]byte(user))
	return hex.EncodeToString(sum[:6])
}

// JoinToken lets one machine join as a node, once.
type JoinToken struct {
	Meta
	Role      string    `json:"role" enum:"node"`
	ExpiresAt time.Time `json:"expiresAt"`
	CreatedBy string    `json:"createdBy,omitempty"`
	// UsedBy is the node that joined with it; empty while unused.
	UsedBy string     `json:"usedBy,omitempty"`
	UsedAt *time.Time `json:"usedAt,omitempty"`
	// Spent says that the node that joined with it was removed: nobody may repeat
	// that join.
	Spent bool `json:"spent,omitempty"`
	// SecretHash is the SHA-256 of the token's secret half, in hex.
	SecretHash string `json:"secretHash,omitempty" hidden:"true"`
}

// Kind is "jointokens".
func (*JoinToken) Kind() string { return "jointokens" }
