// Package api is the platform's HTTP API under /v1: it checks who is asking and
// whether what he asks for can be, writes what is wanted into the store and says
// which task to follow. It promises that every operation passes the one
// authorization table before its body is read, that what is not described in the
// OpenAPI document is refused, that a write is done whole or not at all, and
// that no answer or log line has a secret in it that was not asked for.
//
// Parties: the client and anybody's program send requests; identity knows who
// they are; controllers carry out what was written; adapters in appliance reach
// workspaces' Kubernetes APIs, the registry and tasks through the interfaces
// that are declared here. Only appliance imports it.
package api

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Config is what the API needs, all of it but for what says what nil is.
type Config struct {
	Store      *store.Store
	Identity   Identity
	Workspaces Workspaces
	Volumes    Volumes
	Files      Files
	Claims     Claims
	Images     Images
	Tasks      Tasks
	Audit      Audit // nil: to Log

	// Info is what anybody may know; Registration also decides who may register.
	Info resource.Info
	// Limits is what each account may have unless a sysadmin said otherwise; 0
	// is no limit.
	Limits resource.Limits
	// Datastore is what a workspace gets that asks for none; empty: kine.
	Datastore resource.Datastore
	// NodeAddress says why no node can be at an address, nil if one can; nil: any can.
	NodeAddress func(netip.Addr) error
	// JoinCommand returns what to type on a machine so that it joins with token.
	JoinCommand func(token string) string

	Agent   http.Handler // /v1/agent/; all but /v1/agent/join need a node's certificate
	Livez   http.Handler // /livez
	Readyz  http.Handler // /readyz
	Metrics http.Handler // /metrics

	// Registerer takes the API's own metrics; nil: they are not kept.
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Identity authenticates, authorizes and keeps secrets; modules/identity. All
// methods may be called concurrently. Errors that are no access.Refusal are the
// platform's own trouble.
type Identity interface {
	// Authenticate returns who carries the bearer token that came from an address.
	// Once per request.
	Authenticate(ctx context.Context, token, source string) (*access.Principal, error)
	// Admit says whether p may do op in organization of account, and leaves in p
	// the memberships that decided.
	Admit(ctx context.Context, p *access.Principal, op access.Operation, account, organization string) error
	// LoadMemberships reads memberships of p; empty names stand for any.
	LoadMemberships(ctx context.Context, p *access.Principal, account, organization string) error

	Login(ctx context.Context, address, password, source string) (resource.LoginResult, error)
	Logout(ctx context.Context, p *access.Principal) error
	Register(ctx context.Context, by *access.Principal, r resource.Register, source string) (
		account *resource.Account, created bool, err error)
	ChangePassword(ctx context.Context, p *access.Principal, old, new, source string) error
	SetPassword(ctx context.Context, user, password string, first bool) error
	CreateUser(ctx context.Context, address, password string, user resource.User,
		grant func(context.Context, *resource.User) (store.Op, error)) (*resource.User, error)
	DeleteUser(ctx context.Context, user *resource.User) error
	DisableSessions(ctx context.Context, user string) error
	LastOwner(ctx context.Context, account, user string) (bool, error)
	LastSysadmin(ctx context.Context, user string) (bool, error)
	// Reserved returns the account that alone may make users of an address.
	Reserved(ctx context.Context, address string) (account string, err error)

	// Invite offers a role, in one commit with what within returns; it may be called
	// several times.
	Invite(ctx context.Context, offer resource.Invitation, within func(context.Context) ([]store.Op, error)) (
		made *resource.Invitation, code string, err error)
	Invitations(ctx context.Context, p *access.Principal) ([]*resource.Invitation, error)
	Accept(ctx context.Context, p *access.Principal, account, organization, code string) (*resource.Membership, error)
	Decline(ctx context.Context, p *access.Principal, account, organization string) error
	// Withdraw says whether there was one with the key of that membership.
	Withdraw(ctx context.Context, key string) (found bool, err error)
	WithdrawAll(ctx context.Context, place string) error

	CreateJoinToken(ctx context.Context, ttl time.Duration, by string) (text string, token *resource.JoinToken, err error)
	KubeUser(p *access.Principal, ws *resource.Workspace) resource.KubeUser
	IssueKubeToken(ctx context.Context, p *access.Principal, ws *resource.Workspace) (resource.KubeToken, error)

	ServeDiscovery(w http.ResponseWriter, r *http.Request)
	ServeKeys(w http.ResponseWriter, r *http.Request)
}

// Workspaces reaches the Kubernetes APIs of workspaces. All methods may be
// called concurrently and block until the plane has answered or ctx is done.
// They return resource.ErrNotReady while the plane does not answer, and
// store.ErrNotFound, store.ErrExists and resource.ErrSystemNamespace for
// namespaces.
type Workspaces interface {
	// Access returns what a kubeconfig needs. It asks no plane.
	Access(ctx context.Context, ws *resource.Workspace) (resource.KubeAccess, error)
	Namespaces(ctx context.Context, workspace string) ([]resource.Namespace, error)
	CreateNamespace(ctx context.Context, workspace, name string) error
	DeleteNamespace(ctx context.Context, workspace, name string) error
	ClusterNodes(ctx context.Context, workspace string) ([]resource.ClusterNode, error)
}

// Volumes knows what room hosts have for them; modules/storage. It may be called concurrently.
type Volumes interface {
	// Grow calls commit, which writes that a volume shall have so many bytes more, unless
	// its host has not so much free: an *access.Refusal. Two don't get the same room.
	Grow(ctx context.Context, v *resource.Volume, more int64, commit func() error) error
	// BalancePlan is which copies of shared volumes would go where for balance, as it looks now. It reads what all volumes
	// and machines are.
	BalancePlan(ctx context.Context) ([]resource.BalancedCopy, error)
	// CheckEncryption says with an *access.Refusal that nowhere a volume can be encrypted that shall be.
	CheckEncryption(v *resource.Volume) error
	// Move calls commit with what else is to be written with a volume that shall be at Spec.Place, or if
	// that is "" stay where it is, and has been given its way, unless it can't be: an *access.Refusal.
	Move(ctx context.Context, now *resource.Volume, commit func(...store.Op) error) error
	// Snapshot calls commit with what else is to be written with a snapshot that is new, and has been
	// given its place, unless it can't be made where its volume is: an *access.Refusal.
	Snapshot(ctx context.Context, now *resource.Snapshot, commit func(...store.Op) error) error
	// Copy is Snapshot for a volume that is made from another, or from a snapshot.
	Copy(ctx context.Context, now *resource.Volume, commit func(...store.Op) error) error
	// Needed says with an *access.Refusal what is being made from a shared volume, which could not be once that is in the trash.
	Needed(ctx context.Context, v *resource.Volume) error
	// Restore calls commit, which writes that a volume comes back from the trash to another workspace, unless
	// its hosts can have no more of that: an *access.Refusal.
	Restore(ctx context.Context, v *resource.Volume, commit func() error) error
}

// Claims reaches the claims of workspaces' clusters, as a user there; modules/storage. All
// methods may be called concurrently and block until the plane has answered or ctx is done.
// Errors are an *access.Refusal, after which nothing is as was asked for, or
// resource.ErrNotReady, after which nobody knows.
type Claims interface {
	List(ctx context.Context, ws *resource.Workspace, as resource.KubeUser, namespace string) ([]resource.Claim, error)
	// Create returns the claim as it is if there is one: then made is false.
	Create(ctx context.Context, ws *resource.Workspace, as resource.KubeUser, want resource.Claim) (
		now resource.Claim, made bool, err error)
	// Delete begins it: a claim stays while pods use it.
	Delete(ctx context.Context, ws *resource.Workspace, as resource.KubeUser, namespace, name string) error
	// CheckBind says why the cluster would refuse the user the claim that Spec.Claim names.
	CheckBind(ctx context.Context, ws *resource.Workspace, as resource.KubeUser, v *resource.Volume) error
	// Bind gives a volume that is ready to the claim that Spec.Claim names, which it
	// makes. Release takes it from that claim, which it deletes, and keeps what is in the
	// volume. Both may be repeated, and go on where an earlier call has ended, refused or not.
	Bind(ctx context.Context, ws *resource.Workspace, as resource.KubeUser, v *resource.Volume) error
	Release(ctx context.Context, ws *resource.Workspace, as resource.KubeUser, v *resource.Volume) error
	// Unused refuses while pods use the claim which a volume has.
	Unused(ctx context.Context, ws *resource.Workspace, v *resource.Volume) error
	// Users are names of pods that use the claim which a volume has, a few of them.
	Users(ctx context.Context, ws *resource.Workspace, as resource.KubeUser, v *resource.Volume) ([]string, error)
}

// Images reaches the registry. All methods may be called concurrently.
type Images interface {
	// List returns all repositories of an organization with their tags.
	List(ctx context.Context, account, organization string) ([]resource.Image, error)
	// Delete removes one tag, or digest, of the repository name, which is
	// ACCOUNT/ORGANIZATION/IMAGE; an empty reference removes the repository.
	// store.ErrNotFound.
	Delete(ctx context.Context, name, reference string) error
	// RemoveAll removes what an organization that goes has left: folders and
	// layers without a tag. It is no error if there is nothing.
	RemoveAll(ctx context.Context, account, organization string) error
}

// Tasks makes tasks visible; modules/task. All methods may be called
// concurrently.
type Tasks interface {
	// Begin returns a task that ends when obj is as wanted, or gone if its deletion
	// was asked for, and the write that makes it, to be committed to the right of
	// obj's own. It writes nothing itself. operation is KIND.VERB, by the user who asked.
	Begin(operation, by string, obj resource.Object) (*resource.Task, store.Op)
	// Follow gives the task as it is and then after each change, up to the one
	// that ends it, ctx's end, or an error: store.ErrNotFound.
	Follow(ctx context.Context, id string) iter.Seq2[*resource.Task, error]
}

// API is the handler and its parts. It is safe for concurrent use.
type API struct {
	cfg     Config
	store   *store.Store
	id      Identity
	log     *slog.Logger
	mux     *http.ServeMux
	huma    huma.API
	metrics *metrics
	shares  *shares
}

// New returns the API. It starts nothing and panics if two operations are
// described as the same, which the package's tests would have shown.
func New(cfg Config) *API {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Audit == nil {
		cfg.Audit = logAudit{cfg.Log}
	}
	if cfg.JoinCommand == nil {
		cfg.JoinCommand = func(token string) string { return "MULTIPAAS_JOIN_TOKEN=" + token + " multipaas node join" }
	}
	if cfg.NodeAddress == nil {
		cfg.NodeAddress = func(netip.Addr) error { return nil }
	}
	a := &API{
		cfg:     cfg,
		store:   cfg.Store,
		id:      cfg.Identity,
		log:     cfg.Log,
		mux:     http.NewServeMux(),
		metrics: newMetrics(cfg.Registerer),
		shares:  newShares(tokensPerSecond, tokensAtOnce),
	}
	a.huma = humago.New(a.mux, a.describe())
	a.sessionOperations()
	a.userOperations()
	a.accountOperations()
	a.organizationOperations()
	a.invitationOperations()
	a.workspaceOperations()
	a.clusterOperations()
	a.appOperations()
	a.volumeOperations()
	a.snapshotOperations()
	a.trashOperations()
	a.claimOperations()
	a.imageOperations()
	a.nodeOperations()
	a.poolOperations()
	a.balanceOperations()
	a.tokenOperations()
	a.taskOperations()
	delete(a.huma.OpenAPI().Components.Schemas.Map(), "ErrorModel") // what huma would answer with
	delete(a.huma.OpenAPI().Components.Schemas.Map(), "ErrorDetail")
	a.mount()
	return a
}

// describe returns the frame of the OpenAPI document.
func (a *API) describe() huma.Config {
	c := huma.DefaultConfig("MultiPaaS", a.cfg.Info.Version)
	c.Info.Description = "Accounts, organizations, workspaces and apps. " +
		"Errors are RFC 9457 problems with a stable code, a sentence and what to do."
	// The document is served as a mounted endpoint: huma's own handler makes it
	// at the first request without a lock.
	c.OpenAPIPath, c.DocsPath, c.SchemasPath = "", "", ""
	c.CreateHooks = nil // no $schema in every answer
	// Whoever got a resource may send it back changed: what is read-only in it is
	// ignored, and nothing but what an operation asks for is required.
	c.FieldsOptionalByDefault = true
	c.RejectUnknownQueryParameters = true
	c.Transformers = []huma.Transformer{a.transform}
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"bearer": {Type: "http", Scheme: "bearer", Description: "The token of POST /v1/login"},
	}
	return c
}

// Server limits: what one connection may take before a handler decides.
const (
	headerTimeout  = 10 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 32 << 10 // a token has 47 octets, a client certificate is not in headers
	stopTimeout    = 10 * time.Second
)

// Server returns an http.Server with the API's limits. The caller sets TLS.
func (a *API) Server() *http.Server {
	return &http.Server{
		Handler:           a.Handler(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
}

// Serve serves on ln, which does TLS, until ctx is done; then it lets what is
// under way end, for ten seconds.
func (a *API) Serve(ctx context.Context, ln net.Listener) error {
	server := a.Server()
	server.BaseContext = func(net.Listener) context.Context { return ctx } // ends streams
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve the API on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := server.Shutdown(stop); err != nil {
		_ = server.Close()
	}
	<-done
	return nil
}
