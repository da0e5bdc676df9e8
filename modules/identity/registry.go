package identity

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

const (
	// RegistryTokenLife is how long a registry token is valid: long enough for
	// the layers of one large image, since clients ask once per push.
	RegistryTokenLife = 5 * time.Minute
	// maxScopes bounds a request: a push that mounts layers from elsewhere asks
	// for two or three.
	maxScopes = 16
)

// RegistryAccess is one entry of a registry token: what may be done with which
// repository, in the format of the distribution project's token specification.
type RegistryAccess struct {
	Type    string   `json:"type"`
	Class   string   `json:"class,omitempty"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// RegistryIssuer is the issuer of registry tokens, not that of workspaces' ones:
// it keeps them apart, beside the audience.
func (id *Identity) RegistryIssuer() string { return id.cfg.Issuer + "/registry" }

// IssueRegistryToken signs a token with as much of the wanted access as p has.
func (id *Identity) IssueRegistryToken(
	ctx context.Context, p *access.Principal, wanted []RegistryAccess,
) (string, time.Time, error) {
	granted := []RegistryAccess{}
	for _, w := range wanted {
		if err := ctx.Err(); err != nil {
			return "", time.Time{}, err
		}
		actions, err := id.registryActions(ctx, p, w)
		if err != nil {
			return "", time.Time{}, err
		}
		if len(actions) > 0 {
			granted = append(granted, RegistryAccess{Type: w.Type, Class: w.Class, Name: w.Name, Actions: actions})
		}
	}
	own := map[string]any{"access": granted}
	return id.sign(ctx, id.RegistryIssuer(), p.User, id.cfg.RegistryService, RegistryTokenLife, own)
}

// repository is what may stand behind ACCOUNT/ORGANIZATION/ in the name of a
// repository.
var repository = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)

func (id *Identity) registryActions(ctx context.Context, p *access.Principal, w RegistryAccess) ([]string, error) {
	operations := map[string]access.Operation{"pull": access.OpPull, "push": access.OpPush, "delete": access.OpDeleteImage}
	account, organization := "", ""
	switch {
	case w.Type == "registry" && w.Name == "catalog":
		operations = map[string]access.Operation{"*": access.OpCatalog}
	case w.Type == "repository":
		// ACCOUNT/ORGANIZATION/IMAGE, where the image may have more parts.
		parts := strings.SplitN(w.Name, "/", 3)
		if len(parts) != 3 || !repository.MatchString(parts[2]) ||
			resource.CheckName("", parts[0]) != nil || resource.CheckName("", parts[1]) != nil {
			return nil, nil
		}
		account, organization = parts[0], parts[1]
		// An owner has a role in every organization of his account, also in one
		// that is not there: don't let a push bring it into being.
		if _, err := store.Of[resource.Organization](id.store).Get(ctx, account+"/"+organization); errors.Is(err, store.ErrNotFound) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
	default:
		return nil, nil
	}
	wanted := w.Actions
	if w.Type == "repository" && slices.Contains(wanted, "*") {
		wanted = []string{"pull", "push", "delete"}
	}
	var actions []string
	for _, a := range wanted {
		op, ok := operations[a]
		if !ok || slices.Contains(actions, a) {
			continue
		}
		err := id.Admit(ctx, p, op, account, organization)
		if err == nil {
			actions = append(actions, a)
		} else if _, no := errors.AsType[*access.Refusal](err); !no {
			return nil, err
		}
	}
	return actions, nil
}

// ServeRegistryToken is the endpoint that OCI clients are sent to by the
// registry: GET with HTTP Basic. The password is the user's, or a bearer token of
// the platform. Clients that try a form first, as containerd's do, ask by GET
// when they are told that there is no POST: a form is what simple requests of
// others can send, and a second way to log in.
func (id *Identity) ServeRegistryToken(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", "GET")
		registryError(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "Tokens are asked for by GET.")
		return
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		registryError(w, http.StatusBadRequest, "UNSUPPORTED", "The request is not understood.")
		return
	}
	user, password, given := r.BasicAuth()
	if !given {
		if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
			password, given = bearer, true
		}
	}
	if service := query.Get("service"); service != "" && service != id.cfg.RegistryService {
		registryError(w, http.StatusBadRequest, "UNSUPPORTED", "There is no such service here.")
		return
	}
	wanted, err := parseScopes(query["scope"])
	if err != nil {
		registryError(w, http.StatusBadRequest, "UNSUPPORTED", sentence(err))
		return
	}
	if !given {
		w.Header().Set("WWW-Authenticate", `Basic realm="multipaas"`)
		registryError(w, http.StatusUnauthorized, "UNAUTHORIZED", "Log in to the registry with your e-mail address and password.")
		return
	}
	p, err := id.registryPrincipal(r.Context(), user, password, r.RemoteAddr)
	if err != nil {
		id.registryRefusal(w, err)
		return
	}
	token, issued, err := id.IssueRegistryToken(r.Context(), p, wanted)
	if err != nil {
		id.registryRefusal(w, err)
		return
	}
	answer(w, map[string]any{
		"token":        token,
		"access_token": token,
		"expires_in":   int(RegistryTokenLife.Seconds()),
		"issued_at":    issued.Truncate(time.Second),
	})
}

func (id *Identity) registryPrincipal(ctx context.Context, user, password, source string) (*access.Principal, error) {
	var p *access.Principal
	if strings.HasPrefix(password, TokenPrefix) {
		session, err := id.Authenticate(ctx, password, source)
		if err != nil {
			return nil, err
		}
		p = session
	} else {
		u, err := id.CheckPassword(ctx, user, password, source)
		if err != nil {
			return nil, err
		}
		p = principal(u)
	}
	if p.FirstPassword {
		return nil, access.FirstPassword()
	}
	return p, nil
}

func (id *Identity) registryRefusal(w http.ResponseWriter, err error) {
	no, refused := errors.AsType[*access.Refusal](err)
	switch {
	case !refused:
		id.log.Error("registry token", "err", err)
		registryError(w, http.StatusServiceUnavailable, "UNAVAILABLE", "Tokens can't be issued now.")
	case errors.Is(err, access.ErrThrottled):
		w.Header().Set("Retry-After", strconv.Itoa(int(no.RetryAfter.Seconds())))
		registryError(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", no.Text+" "+no.Remedy)
	default:
		w.Header().Set("WWW-Authenticate", `Basic realm="multipaas"`)
		registryError(w, http.StatusUnauthorized, "UNAUTHORIZED", no.Error())
	}
}

// registryError answers in the format that OCI clients show to people.
func registryError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	answer(w, map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

// parseScopes reads TYPE[(CLASS)]:NAME:ACTION[,ACTION]… ; NAME may hold a port
// and so a colon. Several may stand in one value, with blanks between.
func parseScopes(values []string) ([]RegistryAccess, error) {
	var list []RegistryAccess
	for _, value := range values {
		for _, scope := range strings.Fields(value) {
			first, last := strings.Index(scope, ":"), strings.LastIndex(scope, ":")
			if first <= 0 || first == last || len(scope) > 512 {
				return nil, fmt.Errorf("the scope %q is not understood", clip(scope, 80))
			}
			if len(list) == maxScopes {
				return nil, fmt.Errorf("at most %d scopes can be asked for at once", maxScopes)
			}
			typ, class := scope[:first], ""
			if i := strings.IndexByte(typ, '('); i > 0 && strings.HasSuffix(typ, ")") {
				typ, class = typ[:i], typ[i+1:len(typ)-1]
			}
			list = append(list, RegistryAccess{
				Type:    typ,
				Class:   class,
				Name:    scope[first+1 : last],
				Actions: strings.Split(scope[last+1:], ","),
			})
		}
	}
	return list, nil
}
