package attack

import (
	"errors"
	"strings"
	"testing"
)

// testReach tries to connect to what isn't A's, by every port that somebody
// listens on. A refused connection was an answer: it counts as reached.
func testReach(t *testing.T, s *suite) {
	own := []string{"tcp:" + s.attacker.ip + ":8080", "tcp:172.30.0.1:6443", "tcp:169.254.20.10:5000"}
	r := s.in(t, s.attacker, append([]string{"/tool", "try"}, own...)...)
	var err error
	if strings.Count(r.Out, " open ") != len(own) {
		err = errors.New(r.String())
	}
	s.control(t, "A reaches its own", err)
}
