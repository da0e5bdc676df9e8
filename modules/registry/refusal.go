package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// refusal is an error of the OCI distribution protocol: clients print Message.
type refusal struct {
	Status  int    `json:"-"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *refusal) Error() string { return e.Message }

// The codes are those of the OCI distribution specification.
func refuse(status int, code, format string, args ...any) *refusal {
	return &refusal{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

func errName(repository string) *refusal {
	return refuse(http.StatusBadRequest, "NAME_INVALID",
		"%q is not a repository of this platform: use ACCOUNT/ORGANIZATION/IMAGE in lower case", repository)
}

func errTag(tag string) *refusal {
	return refuse(http.StatusBadRequest, "TAG_INVALID",
		"%q is no tag: use up to 128 letters, digits, dots, dashes and underscores, but begin with no dot or dash", tag)
}

func errDigest(d string) *refusal {
	return refuse(http.StatusBadRequest, "DIGEST_INVALID",
		"%q is no digest that is known here: use sha256:HEX, sha384:HEX or sha512:HEX", d)
}

// serve writes the refusal as an answer.
func (e *refusal) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := json.Marshal(map[string][]*refusal{"errors": {e}})
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	status := e.Status
	if r.Method == http.MethodHead && status == http.StatusBadRequest {
		// Before a push, clients ask by HEAD, whose answer can't say what is
		// wrong. After "not there" they go on to a request whose answer can.
		status = http.StatusNotFound
	}
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "5")
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		w.Write(append(body, '\n'))
	}
}
