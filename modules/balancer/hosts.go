package balancer

import (
	"net"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
)

// canonicalHost is the host of a Host header or SNI in the form of the routes'
// keys: lower case, no port, no final dot. False: it can't be the name of a host.
func canonicalHost(s string) (string, bool) {
	if len(s) > 300 {
		return "", false
	}
	if strings.Contains(s, ":") {
		h, _, err := net.SplitHostPort(s)
		if err != nil {
			return "", false
		}
		s = h
	}
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if s == "" || len(s) > 253 {
		return "", false
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return "", false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return "", false
			}
		}
	}
	return s, true
}

// checkRoute says why a route is not served; "" if it is. Each workspace has the
// hosts below WORKSPACE.ORGANIZATION.ACCOUNT.DOMAIN and no others. The API checks
// that, too; here it is checked again since here it counts.
func checkRoute(r *resource.Route, domain string) string {
	host, ok := canonicalHost(r.Name)
	if !ok || host != r.Name {
		return "the host name is not valid: use lower-case letters, digits, '-' and dots"
	}
	parts := strings.Split(r.Workspace, "/")
	if len(parts) != 3 {
		return "the route names no workspace"
	}
	suffix := "." + parts[2] + "." + parts[1] + "." + parts[0] + "." + domain
	if !strings.HasSuffix(host, suffix) {
		return "the host is not this workspace's: choose a name that ends with " + suffix
	}
	if r.Service == "" || r.Namespace == "" || r.Port < 1 || r.Port > 65535 {
		return "the route names no service and port"
	}
	return ""
}

// workspaceOf is the key of the workspace that a host name is of by its end, see
// checkRoute. Other names are their own.
func workspaceOf(host, domain string) string {
	of, ok := strings.CutSuffix(host, "."+domain)
	parts := strings.Split(of, ".")
	if n := len(parts); ok && n > 3 {
		return parts[n-1] + "/" + parts[n-2] + "/" + parts[n-3]
	}
	return host
}
