package attack

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
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
	ask := func(request string) (got string) {
		for range 10 { // the door, or the registry behind it, may be busy
			got = say(request)[url.QueryEscape(request)]
			if got != "" && !strings.HasPrefix(got, "none") && !strings.HasPrefix(got, "HTTP/1.1 5") {
				break
			}
			time.Sleep(time.Second)
		}
		return got
	}
	const accept = "Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
	const own, ofB = "/v2/beta/ops/tool/manifests/1", "/v2/acme/web/tool/manifests/1"
	var err error
	if got := ask(request(http.MethodGet, own, accept)); !strings.HasPrefix(got, "HTTP/1.1 200") || !strings.Contains(got, `"layers"`) {
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
	for what, r := range tries {
		got := ask(r)
		s.record(t, attempt{What: "through the registry's door: " + what, From: "pod of A, root", Want: "4xx and nothing of B's", Got: got,
			Blocked: strings.HasPrefix(got, "HTTP/1.1 4") && !strings.Contains(got, `"layers"`) && !strings.Contains(got, `"tags"`) && !strings.Contains(got, `"token"`)})
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
