package api

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/util/cache"

	"github.com/multipaas/multipaas/appliance/limiter"
	"github.com/multipaas/multipaas/modules/internal/access"
)

// What of the API one who asks may take. A read is a token and takes the server
// about 2 ms of a core, a write is two; so 100 tokens a second are a tenth of two cores.
// `mp` needs some five per command, a host one or two per second and machine. A script
// that asks for all it has at once has room for 1,000, and is told then how long
// to wait. All of one account together may take twice as much. Sysadmins are
// not bounded: it is they who mend what goes wrong.
const (
	tokensPerSecond = 100
	tokensAtOnce    = 1000
	writeTokens     = 2
	accountShare    = 2

	// Under way at once, streams that follow tasks among them: each is a goroutine, a
	// watch and a file. A hundred jobs of one robot that wait for their deploys have room.
	underWay        = 128
	accountUnderWay = 2 * underWay
	allUnderWay     = 8192

	// Whose a token was is remembered for a minute: who asks too often is told so
	// without a look into the datastore. 10,000 x about 250 octets are 2.5 MB.
	maxMet = 10_000
	metFor = time.Minute
)

// shares counts what of the API each one takes.
type shares struct {
	principals, accounts *limiter.Rate[string]
	inPrincipal          *limiter.Limiter[string]
	inAccount            *limiter.Limiter[string]
	whose                *cache.LRUExpireCache // names of principals, by the sum of a token
}

func newShares(perSecond float64, atOnce int) *shares {
	return &shares{
		principals:  limiter.NewRate[string](perSecond, atOnce),
		accounts:    limiter.NewRate[string](accountShare*perSecond, accountShare*atOnce),
		inPrincipal: limiter.New[string](underWay, allUnderWay),
		inAccount:   limiter.New[string](accountUnderWay, allUnderWay),
		whose:       cache.NewLRUExpireCache(maxMet),
	}
}

// met remembers whose a token is.
func (s *shares) met(token string, p *access.Principal) {
	if !p.Sysadmin {
		s.whose.Add(sha256.Sum256([]byte(token)), p.Name(), metFor)
	}
}

// due refuses a token whose owner asks too often, before anything is read for him. It
// counts nothing.
func (s *shares) due(token string) error {
	name, ok := s.whose.Get(sha256.Sum256([]byte(token)))
	if !ok {
		return nil
	}
	if wait := s.principals.Due(name.(string), 1); wait > 0 {
		return tooOften(askTooOften, wait)
	}
	return nil
}

const askTooOften = "You ask the platform too often."

// ofPrincipal counts a request of p, who is nobody known if nil: then it counts for
// where it came from. Unless it is refused, leave is to be called when it is over.
func (s *shares) ofPrincipal(p *access.Principal, method, source string) (leave func(), err error) {
	who, text := p.Name(), askTooOften
	switch {
	case p == nil:
		who, text = "from "+limiter.Network(source), "There are too many requests from your address by nobody who has logged in."
	case p.Sysadmin:
		return func() {}, nil
	}
	return enter(s.principals, s.inPrincipal, who, method, text)
}

// ofAccount counts a request of p for the account that he counts in and for the
// one that it is about. Call it when it is known that he may ask for that: else
// anybody could use up anybody's share.
func (s *shares) ofAccount(p *access.Principal, method, account string) (leave func(), err error) {
	if p == nil || p.Sysadmin {
		return func() {}, nil
	}
	var entered []func()
	leave = func() {
		for _, leave := range entered {
			leave()
		}
	}
	names := []string{p.Account, account}
	for _, name := range slices.Compact(slices.DeleteFunc(names, func(name string) bool { return name == "" })) {
		one, err := enter(s.accounts, s.inAccount, name, method, fmt.Sprintf("The account %q asks the platform too often.", name))
		if err != nil {
			leave()
			return nil, err
		}
		entered = append(entered, one)
	}
	return leave, nil
}

func enter(often *limiter.Rate[string], under *limiter.Limiter[string], who, method, text string) (leave func(), err error) {
	tokens := 1
	if method != http.MethodGet && method != http.MethodHead {
		tokens = writeTokens
	}
	if wait := often.Take(who, tokens); wait > 0 {
		return nil, tooOften(text, wait)
	}
	if !under.Enter(who) {
		return nil, tooOften(text[:len(text)-1]+" at once.", time.Second)
	}
	return func() { under.Leave(who) }, nil
}

func tooOften(text string, wait time.Duration) error {
	wait = max(wait.Round(time.Second), time.Second)
	return &access.Refusal{
		Reason:     access.ErrThrottled,
		Text:       text,
		Remedy:     fmt.Sprintf("Wait %s, as Retry-After says, and ask again, less often or for several things at once.", wait),
		RetryAfter: wait,
	}
}

// admitted counts a request for whom it is by, lets admit decide whether he may, and
// counts it then for the account. leave is to be called when the request is over.
func (a *API) admitted(r *http.Request, p *access.Principal, admit func() error) (leave func(), err error) {
	one, err := a.shares.ofPrincipal(p, r.Method, r.RemoteAddr)
	if err != nil {
		return nil, err
	}
	var both func()
	if err = admit(); err == nil {
		both, err = a.shares.ofAccount(p, r.Method, r.PathValue("account"))
	}
	if err != nil {
		one()
		return nil, err
	}
	return func() { both(); one() }, nil
}
