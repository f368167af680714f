package p2p

import (
	"crypto/rand"

	"github.com/libp2p/go-libp2p"
	mplex "github.com/libp2p/go-libp2p-mplex"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
)

// NewIdentity makes a secp256k1 key, the only kind that classic Codex nodes
// accept. All other libp2p nodes accept it too.
func NewIdentity() (crypto.PrivKey, error) {
	key, _, err := crypto.GenerateSecp256k1Key(rand.Reader)
	return key, err
}

// HostOptions are the options that a libp2p host needs beside an identity and
// addresses to be understood by classic Codex nodes as well as by all others:
// TCP; TLS and Noise; yamux, and mplex for those who lack it. Others may be
// added, such as libp2p.Transport(quic.NewTransport): none of these replaces
// what the caller names.
func HostOptions() []libp2p.Option {
	return []libp2p.Option{
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.DefaultSecurity,
		libp2p.DefaultMuxers,
		libp2p.Muxer(mplex.ID, mplex.DefaultTransport),
	}
}
