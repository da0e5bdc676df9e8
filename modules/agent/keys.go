package agent

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/multipaas/multipaas/modules/wire"
)

// keyTimeout is how long the server is waited for that is asked for a key: it looks into its store, and no more.
const keyTimeout = 5 * time.Second

// errSilent is returned for what is not asked, since the server has not answered a moment ago.
var errSilent = errors.New("the server does not answer")

// silence is of a server that did not answer. Of those who want something of it one asks then, and the others are told at once:
// all of a host's workers would wait, and the volumes of others with them.
type silence struct {
	mu     sync.Mutex
	silent bool
	next   time.Time // when somebody asks again
}

// ask says whether to ask. Whoever does says what came of it with heard.
func (s *silence) ask() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.silent && time.Now().Before(s.next) {
		return false
	}
	s.next = time.Now().Add(keyTimeout) // until it is known
	return true
}

func (s *silence) heard(answer bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = !answer
}

// VolumeKey is the key of an encrypted volume on this host, or that a brick with this UID is of. The server
// alone has it: while that is away the error says so, within keyTimeout.
func (c *Client) VolumeKey(ctx context.Context, key, uid string) ([]byte, error) {
	if !c.keys.ask() {
		return nil, fmt.Errorf("ask %s for the key of volume %s: %w", c.server, key, errSilent)
	}
	ask, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	var res wire.VolumeKey
	err := c.call(ask, wire.VolumeKeyPath, wire.VolumeKeyRequest{Key: key, UID: uid}, &res)
	var unheard *url.Error // of the way there; what the server refuses is none
	if ctx.Err() == nil {
		c.keys.heard(!errors.As(err, &unheard) && ask.Err() == nil)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s for the key of volume %s: %w", c.server, key, err)
	}
	return res.Key, nil
}
