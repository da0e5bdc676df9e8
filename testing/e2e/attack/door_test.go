package attack

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// doorAddress is where machines pull: a door to the platform's registry in each of
// them, which anybody there may use. The node's agent asks behind it, with the
// certificate of a node that runs B's machines too.
const doorAddress = "169.254.20.10:5000"

// testDoor pulls B's images through the door of A's own machine.
func testDoor(t *testing.T, s *suite) {
	request := func(method, target string, headers ...string) string {
		return method + " " + target + " HTTP/1.1\r\n" + strings.Join(append([]string{"Host: " + doorAddress, "Connection: close"}, headers...), "\r\n") + "\r\n\r\n"
	}
	say := func(requests ...string) map[string]string {
		args := []string{"/tool", "say", doorAddress}
		for _, r := range requests {
			args = append(args, url.QueryEscape(r))
		}
		return answers(s.in(t, s.attacker, args...).Out)
	}
	// ask asks all of them at once, for kubectl takes its time.
	ask := func(requests ...string) map[string]string {
		got := map[string]string{}
		for range 10 { // the door, or the registry behind it, may be busy
			var again []string
			for escaped, answer := range say(requests...) {
				request, _ := url.QueryUnescape(escaped)
				got[request] = answer
			}
			for _, r := range requests {
				if got[r] == "" || strings.HasPrefix(got[r], "none") || strings.HasPrefix(got[r], "HTTP/1.1 5") {
					again = append(again, r)
				}
			}
			if requests = again; len(requests) == 0 {
				break
			}
			time.Sleep(time.Second)
		}
		return got
	}
	const accept = "Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
	const own, ofB = "/v2/beta/ops/tool/manifests/1", "/v2/acme/web/tool/manifests/1"
	var err error
	pull := request(http.MethodGet, own, accept)
	if got := ask(pull)[pull]; !strings.HasPrefix(got, "HTTP/1.1 200") || !strings.Contains(got, `"layers"`) {
		err = errors.New(got)
	}
	if !s.control(t, "A pulls A's manifest through the door", err) {
		return
	}
	a := s.people(t)
	basicB := "Authorization: Basic " + basic(ownerB, a.word(t, "owner-password"))
	const header = "X-Multipaas-Workspace: acme/web/shop"
	tries := map[string]string{
		"B's manifest":                                   request(http.MethodGet, ofB, accept),
		"B's manifest as B's workspace":                  request(http.MethodGet, ofB, accept, header),
		"B's manifest as B's workspace, twice":           request(http.MethodGet, ofB, accept, header, header),
		"B's manifest as both workspaces":                request(http.MethodGet, ofB, accept, "X-Multipaas-Workspace: beta/ops/box", header),
		"B's manifest as B's workspace in small letters": request(http.MethodGet, ofB, accept, strings.ToLower(header)),
		"B's manifest as B's workspace by underscores":   request(http.MethodGet, ofB, accept, "X_Multipaas_Workspace: acme/web/shop"),
		"B's manifest, its own header for this hop only": request(http.MethodGet, ofB, accept, header, "Connection: X-Multipaas-Workspace"),
		"B's manifest, both headers for this hop only":   request(http.MethodGet, ofB, accept, header, "Connection: Authorization, X-Multipaas-Workspace"),
		"B's manifest as B's workspace in a trailer": "GET " + ofB + " HTTP/1.1\r\nHost: " + doorAddress + "\r\nConnection: close\r\nTE: trailers\r\nTrailer: X-Multipaas-Workspace\r\nTransfer-Encoding: chunked\r\n" + accept +
			"\r\n\r\n0\r\n" + header + "\r\n\r\n",
		"B's manifest as B's workspace in a folded header": request(http.MethodGet, ofB, accept, "X: y\r\n "+header),
		"B's manifest with B's own password":               request(http.MethodGet, ofB, accept, basicB),
		"a token with B's own password":                    request(http.MethodGet, "/token?scope=repository:acme/web/tool:pull&account=x", basicB),
		"a token as the node":                              request(http.MethodGet, "/token?scope=repository:acme/web/tool:pull"),
		"B's manifest behind A's by dots":                  request(http.MethodGet, "/v2/beta/ops/tool/../../../acme/web/tool/manifests/1", accept),
		"B's manifest behind A's by escaped dots":          request(http.MethodGet, "/v2/beta/ops/..%2f..%2facme/web/tool/manifests/1", accept),
		"B's manifest by an absolute target":               request(http.MethodGet, "http://registry.example"+ofB, accept),
		"B's manifest in another registry's name":          request(http.MethodGet, ofB+"?ns="+url.QueryEscape(s.RegistryAddress()), accept),
		"B's manifest through this door once more":         request(http.MethodGet, ofB+"?ns="+url.QueryEscape(doorAddress), accept),
		"the agent's own API":                              request(http.MethodGet, "/v1/agent/state", header),
		"B's tags":                                         request(http.MethodGet, "/v2/acme/web/tool/tags/list"),
		"all repositories":                                 request(http.MethodGet, "/v2/_catalog"),
		"who pulls from B's":                               request(http.MethodGet, "/v2/acme/web/tool/referrers/sha256:"+strings.Repeat("0", 64)),
		"an upload to B's":                                 request(http.MethodPost, "/v2/acme/web/tool/blobs/uploads/", "Content-Length: 0", header),
		"an upload to A's own, with B's blobs":             request(http.MethodPost, "/v2/beta/ops/tool/blobs/uploads/?mount=sha256:"+strings.Repeat("0", 64)+"&from=acme/web/tool", "Content-Length: 0"),
		"the deletion of B's tag":                          request(http.MethodDelete, ofB, header),
		"the deletion of A's own tag, in no user's name":   request(http.MethodDelete, own),
		"a tunnel to B's registry":                         request(http.MethodConnect, s.RegistryAddress()),
	}
	got := ask(slices.Collect(maps.Values(tries))...)
	for what, r := range tries {
		got := got[r]
		s.record(t, attempt{What: "through the registry's door: " + what, From: "pod of A, root", Want: "4xx and nothing of B's", Got: got,
			Blocked: strings.HasPrefix(got, "HTTP/1.1 4") && !strings.Contains(got, `"layers"`) && !strings.Contains(got, `"tags"`) && !strings.Contains(got, `"token"`)})
	}

	// What is behind the door and is no pull, such as the place where passwords are
	// checked: asked for as nobody, so that a token that comes back is one by a
	// guess that was right.
	form := url.Values{"grant_type": {"password"}, "username": {ownerB}, "password": {a.word(t, "owner-password")},
		"service": {s.RegistryAddress()}, "scope": {"repository:acme/web/tool:pull"}}.Encode()
	post := func(method, target, kind string, headers ...string) string {
		return request(method, target, append(headers, "Content-Type: "+kind, fmt.Sprintf("Content-Length: %d", len(form)))...) + form
	}
	const encoded = "application/x-www-form-urlencoded"
	var requests []string
	behind := map[string]string{}
	for _, target := range []string{"/token", "/token/", "//token", "/./token", "/v2/../token", "/v2/%2e%2e/token", "/v2/..%2ftoken", "/v2/beta/../../token", "/v2//../token",
		"/%74oken", "/v2/token", "/token;x", "/token?", "http://registry.example/token", "https://" + s.RegistryAddress() + "/token"} {
		behind["POST "+target] = post(http.MethodPost, target, encoded)
		behind["GET with a form "+target] = post(http.MethodGet, target, encoded)
		behind["GET by query "+target] = request(http.MethodGet, strings.TrimSuffix(target, "?")+"?"+form)
	}
	for _, method := range []string{http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions, http.MethodTrace, "post", "PROPFIND"} {
		behind[method+" /token"] = post(method, "/token", encoded)
		behind[method+" of a manifest"] = post(method, own, "application/vnd.oci.image.manifest.v1+json")
	}
	for what, r := range map[string]string{
		"POST said to be GET":           post(http.MethodPost, "/token", encoded, "X-HTTP-Method-Override: GET", "X-Original-URL: /v2/"),
		"GET said to be POST":           post(http.MethodGet, "/v2/", encoded, "X-HTTP-Method-Override: POST", "X-Original-URL: /token", "X-Rewrite-URL: /token"),
		"POST as multipart":             post(http.MethodPost, "/token", "multipart/form-data; boundary=x"),
		"POST behind a pull":            "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" + post(http.MethodPost, "/token", encoded),
		"POST in the body of a pull":    "GET " + own + " HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + post(http.MethodPost, "/token", encoded),
		"an upgrade to another version": request(http.MethodGet, "/token", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
		"the platform's API":            post(http.MethodPost, "/v1/login", "application/json"),
		"the metrics":                   request(http.MethodGet, "/metrics"),
	} {
		behind[what] = r
	}
	for _, r := range behind {
		requests = append(requests, r)
	}
	said := say(requests...)
	for what, r := range behind {
		got := said[url.QueryEscape(r)]
		s.record(t, attempt{What: "a password at the registry's door: " + what, From: "pod of A, root", Want: "no token, and nobody looks at the password", Got: got,
			Blocked: got != "" && !strings.Contains(got, `token":`) && !strings.Contains(got, "password is wrong")})
	}

	// And by the runtime, which is sent there for every image.
	k := newKube(t, s.box)
	k.must(t, "/api/v1/namespaces", `{"metadata":{"name":"door"}}`)
	container := func(name, image string) string {
		return fmt.Sprintf(`{"name":%q,"image":%q,"imagePullPolicy":"Always","args":["open","/nothing"]}`, name, image)
	}
	images := map[string]string{"own": s.Image("beta/ops", "tool"), "theirs": s.Image("acme/web", "tool"), "app": s.Image("acme/web", "hello"),
		"door": doorAddress + "/acme/web/tool:1", "internal": "multipaas.internal/acme/web/tool:1"}
	var containers, names []string
	for name, image := range images {
		containers, names = append(containers, container(name, image)), append(names, name)
	}
	all, r := s.lonePod(t, k, "door", "thief", `"containers":[`+strings.Join(containers, ",")+`]`, names...)
	if r != nil {
		s.control(t, "a pod with B's images is taken", r.good())
		return
	}
	err = nil
	if !all["own"].ran {
		err = errors.New(all["own"].String())
	}
	if !s.control(t, "A's own image is pulled and runs", err) {
		return
	}
	for name, image := range images {
		c, ok := all[name]
		switch {
		case name == "own":
		case !ok:
			s.control(t, "a container of "+image+" is started or refused", errors.New("neither"))
		default:
			s.record(t, attempt{What: "run B's image " + image, From: "owner of A, by containerd", Want: "its pull is refused", Got: c.String(),
				Blocked: !c.ran && (strings.Contains(c.words, "ErrImagePull") || strings.Contains(c.words, "ImagePullBackOff"))})
		}
	}
}
