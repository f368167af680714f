package exchange

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/exchange/wire"
)

// A wireLog prints each message that is sent or received, if the environment
// variable CODEXDEBUG contains the word "wire". A nil wireLog prints nothing.
type wireLog struct {
	self string
	mu   sync.Mutex
	out  io.Writer
}

func newWireLog(self peer.ID) *wireLog {
	if !slices.Contains(strings.Split(os.Getenv("CODEXDEBUG"), ","), "wire") {
		return nil
	}
	return &wireLog{self: self.ShortString(), out: os.Stderr}
}

func (l *wireLog) sent(to peer.ID, m *wire.Message)       { l.print("->", to, m) }
func (l *wireLog) received(from peer.ID, m *wire.Message) { l.print("<-", from, m) }

func (l *wireLog) print(arrow string, p peer.ID, m *wire.Message) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, "%s %s %s %v\n", l.self, arrow, p.ShortString(), m)
}
