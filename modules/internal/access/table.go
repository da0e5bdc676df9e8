package access

import "slices"

// Operation is the id of an operation, KIND.VERB. The API's operations have the
// same ids in its OpenAPI document; a test compares the two.
type Operation string

// Roles is a set of roles.
type Roles uint8

// The roles, as seen from the account and organization that an operation names:
// who owns one account is only a User in another.
const (
	Anonymous Roles = 1 << iota // nobody has logged in
	Newcomer                    // logged in with a password that somebody else chose
	User                        // logged in, no role there
	Developer                   // developer of the organization
	Admin                       // admin of the organization
	Owner                       // owner of the account
	Sysadmin                    // of the platform
	Node                        // a host with a certificate of the platform
)

// Scope says which names an operation's path gives, and so where a role counts.
type Scope string

// The scopes.
const (
	// Platform: no names. The highest role that the user has anywhere counts.
	Platform Scope = "platform"
	// InAccount: an account. A role in any of its organizations counts.
	InAccount Scope = "account"
	// InOrganization: an account and an organization.
	InOrganization Scope = "organization"
	// OfObject: the object says which account and organization it belongs to. It
	// is authorized twice: before it is read, which lets everybody pass who is
	// logged in, and after, with the names.
	OfObject Scope = "object"
)

// Form says how an operation is reached.
type Form string

// The forms.
const (
	// HTTP: an operation of the API of its own.
	HTTP Form = "http"
	// Part: a right that is asked for inside other operations.
	Part Form = "part"
	// Mounted: an endpoint that is not in the OpenAPI document.
	Mounted Form = "mounted"
)

// Rule is one row of the authorization table.
type Rule struct {
	Operation Operation
	Scope     Scope
	Allow     Roles
	Form      Form
}

// Names that code outside the API's list of operations refers to.
const (
	OpRegister       Operation = "register"
	OpRegisterClosed Operation = "register.closed"
	OpUserOfAccount  Operation = "users.account"
	OpGiveOwner      Operation = "owners.put"
	OpGiveRole       Operation = "members.put"
	OpLiftSecurity   Operation = "workspaces.lift"
	OpSeeHosts       Operation = "hosts.see"
	OpPull           Operation = "images.pull"
	OpPush           Operation = "images.push"
	OpDeleteImage    Operation = "images.delete"
	OpCatalog        Operation = "images.catalog"
	OpMetrics        Operation = "metrics"
	OpTaskGet        Operation = "tasks.get"
	OpAgent          Operation = "agent"
	OpJoin           Operation = "agent.join"
)

// Groups of columns that many rows share.
const (
	everybody = Anonymous | Newcomer | users | Node
	users     = User | members
	members   = Developer | admins
	admins    = Admin | owners
	owners    = Owner | Sysadmin
)

// plain are the rows of a kind's plain operations: those that read, list and
// get, and the verbs that write.
func plain(kind Operation, scope Scope, read, write Roles, verbs ...Operation) []Rule {
	rules := []Rule{
		{kind + ".list", scope, read, HTTP},
		{kind + ".get", scope, read, HTTP},
	}
	for _, verb := range verbs {
		rules = append(rules, Rule{kind + "." + verb, scope, write, HTTP})
	}
	return rules
}

// Table is who may do what: the only place where that is said.
func Table() []Rule {
	return slices.Concat(
		[]Rule{
			// Anybody.
			{"info", Platform, everybody, HTTP},
			{"login", Platform, Anonymous | Newcomer | users, HTTP},
			{OpRegister, Platform, Anonymous | users, HTTP}, // when registration is open
			{OpRegisterClosed, Platform, Sysadmin, Part},    // when it is not

			// One's own session.
			{"logout", Platform, Newcomer | users, HTTP},
			{"session.get", Platform, users, HTTP},
			{"password.change", Platform, Newcomer | users, HTTP},
			{"invitations.own", Platform, users, HTTP},
			{"invitations.accept", Platform, users, HTTP}, // the code decides
			{"invitations.decline", Platform, users, HTTP},

			// Users belong to the platform. An account's owner may make one, so that
			// he has somebody to give a role to.
			{"users.create", Platform, owners, HTTP},
			{OpUserOfAccount, InAccount, owners, Part}, // one who counts there
			{"users.list", Platform, Sysadmin, HTTP},
			{"users.get", Platform, Sysadmin, HTTP},
			{"users.patch", Platform, Sysadmin, HTTP},
			{"users.password", Platform, Sysadmin, HTTP},
			{"users.delete", Platform, Sysadmin, HTTP},

			// Accounts. Lists hold what one has a role in.
			{"accounts.list", Platform, users, HTTP},
			{"accounts.get", InAccount, members, HTTP},
			{"accounts.patch", InAccount, Sysadmin, HTTP},
			{"accounts.delete", InAccount, owners, HTTP},
			{"owners.list", InAccount, members, HTTP},
			{OpGiveOwner, InAccount, owners, HTTP},
			{"owners.delete", InAccount, owners, HTTP},
			{"invitations.list", InAccount, admins, HTTP}, // an admin's are those to his organizations

			// Organizations.
			{"organizations.list", InAccount, members, HTTP},
			{"organizations.get", InOrganization, members, HTTP},
			{"organizations.put", InAccount, owners, HTTP},
			{"organizations.delete", InOrganization, owners, HTTP},
			{"members.list", InOrganization, members, HTTP},
			{OpGiveRole, InOrganization, admins, HTTP},
			{"members.delete", InOrganization, admins, HTTP},
		},

		// Workspaces. A developer uses one, an admin decides on its being.
		plain("workspaces", InOrganization, members, admins, "put", "patch", "delete"),
		[]Rule{
			{OpLiftSecurity, InOrganization, Sysadmin, Part},
			{"machines.list", InOrganization, members, HTTP},
			{"clusternodes.list", InOrganization, members, HTTP},
			{OpSeeHosts, Platform, Sysadmin, Part}, // on which host a machine runs
			{"namespaces.list", InOrganization, members, HTTP},
			{"namespaces.put", InOrganization, admins, HTTP},
			{"namespaces.delete", InOrganization, admins, HTTP},
			{"kube.access", InOrganization, members, HTTP},
			{"kube.credential", InOrganization, members, HTTP},
		},

		// Apps, their data and images are a developer's work. Who may make and delete claims
		// in the cluster, as developers may, makes and deletes volumes by that.
		plain("apps", InOrganization, members, members, "put", "patch", "delete"),
		plain("volumes", InOrganization, members, members, "put", "patch", "delete"),
		plain("snapshots", InOrganization, members, members, "put", "delete"),
		[]Rule{
			// What becomes of claims is done as the user, and the cluster decides.
			{"volumes.bind", InOrganization, members, HTTP},
			{"volumes.unbind", InOrganization, members, HTTP},
			{"volumes.move", InOrganization, members, HTTP},
			{"volumes.scrub", InOrganization, members, HTTP},
			{"volumes.beginimport", InOrganization, members, HTTP},
			{"volumes.import", InOrganization, members, HTTP},
			{"snapshots.export", InOrganization, members, HTTP},
			{"trash.list", InOrganization, members, HTTP},
			{"trash.get", InOrganization, members, HTTP},
			{"trash.delete", InOrganization, members, HTTP},
			{"trash.restore", InOrganization, members, HTTP},
			{"claims.list", InOrganization, members, HTTP},
			{"claims.put", InOrganization, members, HTTP},
			{"claims.delete", InOrganization, members, HTTP},
		},
		[]Rule{
			{"images.list", InOrganization, members, HTTP},
			{OpDeleteImage, InOrganization, admins, HTTP},
			{OpPull, InOrganization, members, Part},
			{OpPush, InOrganization, members, Part},
			{OpCatalog, Platform, Sysadmin, Part},
		},

		// The platform's own machines.
		plain("nodes", Platform, Sysadmin, Sysadmin, "patch", "delete", "addpool", "removepool"),
		[]Rule{
			{"balances.get", Platform, Sysadmin, HTTP},
			{"balances.put", Platform, Sysadmin, HTTP},
			{"tokens.create", Platform, Sysadmin, HTTP},
			{"tokens.list", Platform, Sysadmin, HTTP},
			{"tokens.delete", Platform, Sysadmin, HTTP},

			// Tasks belong to whoever has a role where they work.
			{"tasks.list", Platform, users, HTTP},
			{OpTaskGet, OfObject, members, HTTP},
			{"tasks.events", OfObject, members, HTTP},

			// Endpoints outside the OpenAPI document.
			{OpJoin, Platform, everybody, Mounted}, // the join token decides
			{OpAgent, Platform, Node, Mounted},
			{"oidc.discovery", Platform, everybody, Mounted},
			{"oidc.keys", Platform, everybody, Mounted},
			{"openapi", Platform, everybody, Mounted},
			{OpMetrics, Platform, Sysadmin, Mounted},
		},
	)
}

// Lookup returns the row of op.
func Lookup(op Operation) (Rule, bool) {
	// Making and walking some 70 rows takes a few microseconds; a map would have to
	// be package state.
	for _, r := range Table() {
		if r.Operation == op {
			return r, true
		}
	}
	return Rule{}, false
}
