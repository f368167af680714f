package peerstore

import "fmt"

// A Source is the part of the node that vouches for an address. The numbers are
// stored on disk and never change their meaning.
type Source uint8

const (
	// Manual is a person: a command, or code that holds the Store itself.
	Manual Source = iota
	// Host is libp2p: the addresses it is about to dial, and those that
	// identify brings. The two are one source because libp2p moves addresses
	// between them by TTL alone.
	Host
	// DHT is what peers of the DHT say of other peers.
	DHT
	// Discovery is mDNS and whatever else finds peers unasked.
	Discovery
	// Peering is the list of peers that the configuration keeps connected.
	Peering

	sources // number of sources
)

func (s Source) String() string {
	switch s {
	case Manual:
		return "manual"
	case Host:
		return "host"
	case DHT:
		return "dht"
	case Discovery:
		return "discovery"
	case Peering:
		return "peering"
	}
	return fmt.Sprintf("source %d", uint8(s))
}

// A writer is who changes addresses, and how far that reaches.
type writer struct {
	source Source
	all    bool // reaches the claims of every source
}

// may reports whether the writer may lower or remove the claim.
func (w writer) may(c claim) bool { return w.all || c.source == w.source }
