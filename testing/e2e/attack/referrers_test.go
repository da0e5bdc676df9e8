package attack

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

const ociManifest = "application/vnd.oci.image.manifest.v1+json"

// referrers has A sign what is B's, and ask for what signs it: lists of what refers to an
// image are a repository's own, as are orders to drop it.
func (s *suite) referrers(t *testing.T, a *asker, base, own, tokenB, digestB string) {
	list := func(token, repository, subject string) (all []string, got answer) {
		got = a.bearer(t, token, http.MethodGet, base+repository+"/referrers/"+subject, "")
		var index struct{ Manifests []struct{ Digest string } }
		_ = json.Unmarshal([]byte(got.body), &index)
		for _, m := range index.Manifests {
			all = append(all, m.Digest)
		}
		return all, got
	}
	blob := func(token, repository string) answer {
		sum := sha256.Sum256([]byte("{}"))
		return a.bearer(t, token, http.MethodPost, base+repository+"/blobs/uploads/?digest=sha256:"+hex.EncodeToString(sum[:]), "{}", "Content-Type", "application/octet-stream")
	}
	signature := func(subject, kind, extra string) string {
		sum := sha256.Sum256([]byte("{}"))
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":%q,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:%s","size":2},"layers":[],"subject":{"mediaType":%q,"digest":%q,"size":1}%s}`,
			ociManifest, kind, hex.EncodeToString(sum[:]), ociManifest, subject, extra)
	}
	put := func(token, repository, ref, body string, mediaType ...string) answer {
		return a.bearer(t, token, http.MethodPut, base+repository+"/manifests/"+ref, body, "Content-Type", append(mediaType, ociManifest)[0])
	}
	var err error
	for token, repository := range map[string]string{tokenB: "acme/web/tool", own: "beta/ops/tool"} {
		if got := blob(token, repository); got.status != http.StatusCreated {
			err = errors.New(got.String())
		}
	}
	if got := put(tokenB, "acme/web/tool", "signed", signature(digestB, "b/sig", "")); got.status != http.StatusCreated {
		err = errors.New(got.String())
	}
	ofB, got := list(tokenB, "acme/web/tool", digestB)
	if len(ofB) != 1 {
		err = errors.Join(err, errors.New(got.String()))
	}
	if !s.control(t, "B signs B's image", err) {
		return
	}
	same := func(what string, did answer) {
		t.Helper()
		now, got := list(tokenB, "acme/web/tool", digestB)
		s.record(t, attempt{What: what, From: ownerA, Want: "what refers to B's image is as before", Got: did.String() + "; then " + got.String(), Blocked: strings.Join(now, " ") == strings.Join(ofB, " ")})
	}
	sum := func(body string) (string, string) {
		short, long := sha256.Sum256([]byte(body)), sha512.Sum512([]byte(body))
		return "sha256:" + hex.EncodeToString(short[:]), "sha512:" + hex.EncodeToString(long[:])
	}
	for _, kind := range []string{"b/sig", "attack/sig", "application/vnd.dev.cosign.simplesigning.v1+json", "application/spdx+json", "application/vnd.cncf.notary.signature"} {
		body := signature(digestB, kind, `,"annotations":{"org.opencontainers.image.created":"2000-01-01T00:00:00Z"}`)
		short, long := sum(body)
		for _, ref := range []string{"forged", short, long, long + "?tag=forged2"} {
			same("sign B's image in A's repository as "+kind+", as "+ref[:min(len(ref), 12)], put(own, "beta/ops/tool", ref, body))
		}
		same("sign B's image in B's repository as "+kind, put(own, "acme/web/tool", "forged", body))
	}
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"subject":{"mediaType":%q,"digest":%q,"size":1}}`, ociManifest, digestB)
	same("sign B's image by an index", put(own, "beta/ops/tool", "forged3", index, "application/vnd.oci.image.index.v1+json"))
	// The names that clients used before there were lists.
	same("tag as clients did that know no lists", put(own, "acme/web/tool", strings.Replace(digestB, ":", "-", 1), signature(digestB, "x", "")))
	for _, what := range []string{ofB[0], digestB} {
		same("delete of A's repository what only B has: "+what[:12], a.bearer(t, own, http.MethodDelete, base+"beta/ops/tool/manifests/"+what, ""))
		same("delete of B's repository: "+what[:12], a.bearer(t, own, http.MethodDelete, base+"acme/web/tool/manifests/"+what, ""))
	}
	theirs, got := list(own, "beta/ops/tool", digestB)
	s.record(t, attempt{What: "ask in A's repository for what refers to B's image", From: ownerA, Want: "A's own", Got: got.String(),
		Blocked: got.status == http.StatusOK && len(theirs) > 0 && !strings.Contains(got.body, ofB[0])})

	refused := func(what string, got answer) {
		t.Helper()
		s.record(t, attempt{What: what, From: ownerA, Want: "4xx", Got: got.String(), Blocked: got.status >= 400 && got.status < 500})
	}
	for _, subject := range []string{"../../../../acme/web/tool", "sha256:../../../x", "sha256:" + strings.Repeat("0", 63), "sha512:" + strings.Repeat("0", 64), "md5:" + strings.Repeat("0", 32), "removed", " ", "sha256:" + strings.Repeat("G", 64), "sha256/" + strings.Repeat("0", 64)} {
		refused("refer to "+subject, put(own, "beta/ops/tool", "x", signature(subject, "a", "")))
	}
	plain := signature(digestB, "a", "")
	for what, body := range map[string]string{
		"64 KiB of annotations":       signature(digestB, "a", `,"annotations":{"a":"`+strings.Repeat("x", 64<<10)+`"}`),
		"an artifact type of 64 KiB":  signature(digestB, strings.Repeat("x", 64<<10), ""),
		"annotations that are a list": signature(digestB, "a", `,"annotations":["a"]`),
		"annotations of numbers":      signature(digestB, "a", `,"annotations":{"a":1}`),
		"a subject that is a list":    strings.Replace(plain, `"subject":{`, `"subject":[{`, 1) + "]",
		"two subjects, one wrong":     strings.Replace(plain, `"subject":{`, `"subject":{"digest":"x"},"subject":{"mediaType":"x"},"Subject":{"digest":"x"},"x":{`, 1),
	} {
		refused("refer to B's image by a manifest with "+what, put(own, "beta/ops/tool", "x", body))
	}
	short, long := sum(plain)
	for _, tag := range []string{"..", "-x", "a/b", "a:b", "%00", strings.Repeat("a", 129), "a&tag=..", strings.Repeat("a&tag=", 20) + "a"} {
		for _, ref := range []string{short, long} {
			refused("push by digest with the tag "+tag[:min(len(tag), 20)]+", "+ref[:6], put(own, "beta/ops/tool", ref+"?tag="+tag, plain))
		}
	}
	for _, q := range []string{"n=0", "n=-1", "n=x", "n=99999999999999999999"} {
		refused("list what refers to it with "+q, a.bearer(t, own, http.MethodGet, base+"beta/ops/tool/referrers/"+digestB+"?"+q, ""))
	}
	for _, last := range []string{"../../../../../acme/web/tool", "%00", strings.Repeat("x", 4000)} {
		got := a.bearer(t, own, http.MethodGet, base+"beta/ops/tool/referrers/"+digestB+"?last="+last, "")
		s.record(t, attempt{What: "list what refers to it from " + last[:min(len(last), 30)], From: ownerA, Want: "nothing of B's", Got: got.String(), Blocked: !strings.Contains(got.body, ofB[0]) && got.status < 500})
	}
}

// floods begins uploads without end, and pushes without end: A's organization has its bound,
// and B pushes as before.
func (s *suite) floods(t *testing.T, a *asker, base string, grant func(...string) string, tokenB string) {
	var scopes []string
	repository := func(i int) string { return fmt.Sprintf("beta/ops/flood%d/a/b/c/d", i) }
	const repositories = 8
	for i := range repositories {
		scopes = append(scopes, "repository:"+repository(i)+":*")
	}
	token := grant(scopes...)
	push := func(token, repository, content string) answer {
		sum := sha256.Sum256([]byte(content))
		return a.bearer(t, token, http.MethodPost, base+repository+"/blobs/uploads/?digest=sha256:"+hex.EncodeToString(sum[:]), content, "Content-Type", "application/octet-stream")
	}
	timed := func(content string) (time.Duration, answer) {
		began := time.Now()
		got := push(tokenB, "acme/web/tool", content)
		return time.Since(began), got
	}
	large := strings.Repeat("what B pushes", 80_000)
	alone, got := timed(large + "alone")
	var err error
	if got.status != http.StatusCreated {
		err = errors.New(got.String())
	}
	if token == "" {
		err = errors.Join(err, errors.New("A gets no token"))
	}
	if !s.control(t, "A and B may push", err) {
		return
	}
	flood := func(n int, do func(i int)) {
		var wg sync.WaitGroup
		work := make(chan int)
		for range 16 {
			wg.Go(func() {
				for i := range work {
					do(i)
				}
			})
		}
		for i := range n {
			work <- i
		}
		close(work)
		wg.Wait()
	}
	var mu sync.Mutex
	by, open := map[int]int{}, []string{}
	flood(300, func(i int) {
		got := a.bearer(t, token, http.MethodPost, base+repository(i%repositories)+"/blobs/uploads/", "")
		mu.Lock()
		defer mu.Unlock()
		by[got.status]++
		if got.status == http.StatusAccepted {
			open = append(open, join(base, got.header.Get("Location")))
		}
	})
	s.record(t, attempt{What: "begin 300 uploads in 8 repositories", From: ownerA, Want: "100 at most, and 429", Got: fmt.Sprint(by),
		Blocked: by[http.StatusAccepted] > 0 && by[http.StatusAccepted] <= 100 && by[http.StatusTooManyRequests] > 0})
	began := a.bearer(t, tokenB, http.MethodPost, base+"acme/web/tool/blobs/uploads/", "")
	s.record(t, attempt{What: "B begins an upload then", From: "B", Want: "202", Got: began.String(), Blocked: began.status == http.StatusAccepted})
	a.bearer(t, tokenB, http.MethodDelete, join(base, began.header.Get("Location")), "")
	flood(len(open), func(i int) { a.bearer(t, token, http.MethodDelete, open[i], "") })
	got = push(token, repository(0), "x")
	s.record(t, attempt{What: "A pushes after it cancelled them", From: ownerA, Want: "201: it harmed nobody but itself", Got: got.String(), Blocked: got.status == http.StatusCreated})

	// Pushes without end.
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	content := strings.Repeat("what A pushes", 80_000)
	for i := range 16 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				push(token, repository(i%repositories), fmt.Sprint(content, i, n))
			}
		})
	}
	var slowest time.Duration
	for i := range 3 {
		took, got := timed(fmt.Sprint(large, i))
		slowest = max(slowest, took)
		if got.status != http.StatusCreated {
			slowest = time.Hour
		}
	}
	stop()
	wg.Wait()
	s.record(t, attempt{What: "push without end, 16 at once", From: ownerA, Want: "B's push within " + answerWithin.String(),
		Got: fmt.Sprintf("%s; alone %s", slowest.Round(time.Millisecond), alone.Round(time.Millisecond)), Blocked: slowest < answerWithin})
}
