package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"
)

const (
	maxTokens    = 500              // repositories whose tokens are kept, about 4 KiB each
	maxToken     = 64 << 10         // answers of token services are a few KiB
	defaultToken = 60 * time.Second // life of a token that says nothing, by the protocol
)

// session is how we are known at one upstream: by nothing, by password, or by
// tokens that the upstream's token service gives for the password.
//
// go-containerregistry's transport was not taken: it refuses token services at
// private addresses, which is where they are in a datacenter.
type session struct {
	client             http.Client
	secure             bool // the upstream has TLS: then its token service must, too
	username, password string

	mu     sync.Mutex
	basic  bool             // it wants the password with each request
	tokens map[string]token // by repository
}

type token struct {
	value   string
	expires time.Time
}

func newSession(base http.RoundTripper, secure bool, username, password string) *session {
	return &session{
		client:   http.Client{Transport: base},
		secure:   secure,
		username: username,
		password: password,
		tokens:   map[string]token{},
	}
}

// do sends a request about a repository, and again with a token if it must.
func (s *session) do(req *http.Request, repository string) (*http.Response, error) {
	s.authorize(req, repository)
	resp, err := s.client.Do(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	challenges := resp.Header.Values("WWW-Authenticate")
	resp.Body.Close()
	if err := s.answer(req.Context(), repository, challenges); err != nil {
		return nil, err
	}
	again := req.Clone(req.Context())
	s.authorize(again, repository)
	return s.client.Do(again)
}

func (s *session) authorize(req *http.Request, repository string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.tokens[repository]; ok && time.Now().Before(t.expires) {
		req.Header.Set("Authorization", "Bearer "+t.value)
	} else if s.basic {
		req.SetBasicAuth(s.username, s.password)
	}
}

// answer does what the first challenge that we understand asks for.
func (s *session) answer(ctx context.Context, repository string, challenges []string) error {
	for _, c := range challenges {
		kind, params, _ := strings.Cut(c, " ")
		switch {
		case strings.EqualFold(kind, "Bearer"):
			t, err := s.fetch(ctx, repository, params)
			if err != nil {
				return err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.tokens) >= maxTokens {
				clear(s.tokens)
			}
			s.tokens[repository] = t
			return nil
		case strings.EqualFold(kind, "Basic") && s.username != "":
			s.mu.Lock()
			defer s.mu.Unlock()
			s.basic = true
			return nil
		}
	}
	return nil // the second try is refused like the first
}

// challengeParam finds key="value" or key=value in a challenge.
var challengeParam = regexp.MustCompile(`([a-zA-Z_]+)=(?:"([^"]*)"|([^",\s]+))`)

// errRefused is returned when the token service says no.
var errRefused = errors.New("the token service refuses")

// fetch gets a token to pull from the repository.
func (s *session) fetch(ctx context.Context, repository, params string) (token, error) {
	p := map[string]string{}
	for _, m := range challengeParam.FindAllStringSubmatch(params, -1) {
		p[strings.ToLower(m[1])] = m[2] + m[3]
	}
	realm, err := url.Parse(p["realm"])
	if err != nil || realm.Host == "" || (realm.Scheme != "https" && (s.secure || realm.Scheme != "http")) {
		return token{}, fmt.Errorf("token service %q: not an https URL", p["realm"])
	}
	q := realm.Query()
	if p["service"] != "" {
		q.Set("service", p["service"])
	}
	q.Set("scope", "repository:"+repository+":pull")
	realm.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return token{}, err
	}
	if s.username != "" {
		req.SetBasicAuth(s.username, s.password)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return token{}, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return token{}, errRefused
	case resp.StatusCode != http.StatusOK:
		return token{}, fmt.Errorf("token service %s: status %d", realm.Host, resp.StatusCode)
	}
	body, err := readAll(resp.Body, maxToken)
	if err != nil {
		return token{}, fmt.Errorf("token service %s: %w", realm.Host, err)
	}
	var got struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &got); err != nil {
		return token{}, fmt.Errorf("token service %s: %w", realm.Host, err)
	}
	t := token{value: got.Token, expires: time.Now().Add(defaultToken)}
	if t.value == "" {
		t.value = got.AccessToken
	}
	if t.value == "" {
		return token{}, fmt.Errorf("token service %s: no token in its answer", realm.Host)
	}
	if got.ExpiresIn > 0 && got.ExpiresIn < 86400 {
		t.expires = time.Now().Add(time.Duration(got.ExpiresIn) * time.Second)
	}
	t.expires = t.expires.Add(-leeway)
	return t, nil
}
