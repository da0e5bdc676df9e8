package agent

import (
	"bytes"
	"encoding/json"
	"net/http"
	"testing"

	"github.com/multipaas/multipaas/modules/wire"
)

// FuzzServerAnswer reads what a server, or who poses as one, answers a node: an
// answer that is no success is an error, and a state is taken whole or not.
func FuzzServerAnswer(f *testing.F) {
	f.Add(200, []byte(`{"certificate":"eA==","ca":""}`))
	f.Add(410, []byte(`{"detail":"gone"}`))
	f.Add(500, []byte(`<html>`))
	f.Add(200, []byte(`{"node":"n1","networks":[{"id":"0000aa","gateway":"172.30.0.2/20","members":[]}],"machines":[{"uid":"u","spec":{}}]}`))
	f.Add(403, []byte(`{"detail":7}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		res := &http.Response{StatusCode: status, Status: "x", Body: readCloser{bytes.NewReader(body)}}
		var state wire.State
		if err := readAnswer(res, &state); status != http.StatusOK {
			if err == nil || err.Error() == "" {
				t.Errorf("%d %q is no error", status, body)
			}
			return
		} else if err != nil {
			return
		}
		// What is kept on disk is what is read from there after a restart.
		text, err := json.Marshal(state)
		if err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		var again wire.State
		if err := json.Unmarshal(text, &again); err != nil {
			t.Errorf("%q: what was kept is not read: %v", body, err)
		}
		if back, err := json.Marshal(again); err != nil || !bytes.Equal(back, text) {
			t.Errorf("kept %s, read %s, %v", text, back, err)
		}
	})
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }
