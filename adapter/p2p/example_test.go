package p2p_test

import (
	"fmt"

	"github.com/libp2p/go-libp2p"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/adapter/p2p"
)

// A host that classic Codex nodes understand, and the network that an exchange
// is given. The host listens only after the exchange has attached.
func Example() {
	key, err := p2p.NewIdentity()
	if err != nil {
		fmt.Println(err)
		return
	}
	host, err := libp2p.New(append(p2p.HostOptions(), libp2p.Identity(key), libp2p.NoListenAddrs)...)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer host.Close()
	network, err := p2p.New(host, p2p.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	// Here the exchange is made with this network, and attaches. Then:
	if err := host.Network().Listen(multiaddr.StringCast("/ip4/127.0.0.1/tcp/0")); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(key.Type(), network.Self() == host.ID(), len(host.Addrs()))
	// Output: Secp256k1 true 1
}
