package attack

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// kube speaks to the API of a workspace as kubectl would, without its checks.
type kube struct {
	url    string
	client *http.Client
	header http.Header // added to each request
}

func newKube(t testing.TB, kubeconfig string) *kube {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = -1, -1
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	client.Timeout = 2 * time.Minute
	return &kube{url: config.Host, client: client}
}

// as asks in somebody else's name.
func (k *kube) as(user string, groups ...string) *kube {
	return &kube{k.url, k.client, http.Header{"Impersonate-User": {user}, "Impersonate-Group": groups}}
}

// reply is what the API said.
type reply struct {
	code int // 0: it said nothing
	body string
}

// String is the reply in one sentence: of a Status its message.
func (r reply) String() string {
	var s struct{ Kind, Message string }
	if json.Unmarshal([]byte(r.body), &s) == nil && s.Kind == "Status" {
		return fmt.Sprintf("%d %s", r.code, s.Message)
	}
	return fmt.Sprintf("%d %s", r.code, r.body)
}

func (k *kube) do(ctx context.Context, method, path, contentType, body string) reply {
	req, err := http.NewRequestWithContext(ctx, method, k.url+path, strings.NewReader(body))
	if err != nil {
		return reply{0, err.Error()}
	}
	for name, values := range k.header {
		req.Header[name] = values
	}
	req.Header.Set("Accept", "application/json")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return reply{0, err.Error()}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return reply{0, err.Error()}
	}
	return reply{resp.StatusCode, string(data)}
}

func (k *kube) post(ctx context.Context, path, body string) reply {
	return k.do(ctx, http.MethodPost, path, "application/json", body)
}

// patch changes an object; kind is merge, json, strategic-merge or apply.
func (k *kube) patch(ctx context.Context, kind, path, body string) reply {
	contentType := "application/" + kind + "-patch+json"
	if kind == "apply" {
		contentType = "application/apply-patch+yaml"
	}
	return k.do(ctx, http.MethodPatch, path, contentType, body)
}

// undecided says that the API had trouble of its own, or too much to do: it neither
// did what it was asked nor refused it.
func (r reply) undecided() bool {
	return r.code == 0 || r.code == http.StatusTooManyRequests || r.code >= 500
}

// decided asks until the API decides, at most until ctx is done: then the last
// answer is that of before.
func decided(ctx context.Context, ask func() reply) reply {
	r := ask()
	for r.undecided() && ctx.Err() == nil {
		time.Sleep(300 * time.Millisecond)
		if next := ask(); ctx.Err() == nil {
			r = next
		}
	}
	return r
}

// must makes something that the attempts need.
func (k *kube) must(t testing.TB, path, body string) {
	t.Helper()
	var r reply
	for range 60 {
		if r = k.post(t.Context(), path, body); r.code/100 == 2 || r.code == http.StatusConflict {
			return
		}
		time.Sleep(time.Second) // a namespace's service account, say, comes a moment later
	}
	t.Fatalf("make %s: %s", path, r)
}
