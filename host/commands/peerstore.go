package commands

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	corestore "github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/exchange/errs"
	"github.com/codexchange/codexchange/host/peerstore"
)

func peerstoreCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "What is known of peers.",
			ShortDescription: `
A node remembers the addresses, keys, protocols and other data of its peers, also
while it is not running.
`,
		},
		Subcommands: map[string]*cmds.Command{
			"ls":     peerstoreLsCommand(),
			"get":    peerstoreGetCommand(),
			"rm":     peerstoreRmCommand(),
			"events": peerstoreEventsCommand(),
		},
	}
}

// opened is the peerstore, and who this node is.
func opened(req *cmds.Request, environment cmds.Environment) (*peerstore.Store, peer.ID, error) {
	e := env(environment)
	store, err := e.peerstore(req.Context)
	if err != nil {
		return nil, "", err
	}
	r, err := e.Repo()
	if err != nil {
		return nil, "", err
	}
	self, err := peer.IDFromPrivateKey(r.Identity())
	return store, self, err
}

// decodePeers reads the peer ids that are the arguments of a command.
func decodePeers(req *cmds.Request) ([]peer.ID, error) {
	if err := req.ParseBodyArgs(); err != nil {
		return nil, err
	}
	var list []peer.ID
	for _, s := range req.Arguments {
		id, err := decodePeer(s)
		if err != nil {
			return nil, err
		}
		list = append(list, id)
	}
	return list, nil
}

// PeerSummary says how much is known of a peer.
type PeerSummary struct {
	Peer      string
	Addrs     int
	Protocols int // that it speaks
	Recalled  int // protocols that it has spoken before, and nobody has confirmed since
	Connected bool
	LastSeen  time.Time `json:",omitzero"`
}

func peerstoreLsCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "List the peers of which anything is known.",
			ShortDescription: "Prints each peer, how much is known of it, and when it was last in contact: those that are connected first, then the latest.",
		},
		Options: []cmds.Option{cmds.BoolOption(quietOption, "q", "Print only peer ids.")},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			store, self, err := opened(req, environment)
			if err != nil {
				return err
			}
			var list []PeerSummary
			for _, id := range store.Peers() {
				if p, ok := store.Peer(id); ok && id != self {
					list = append(list, PeerSummary{
						Peer: id.String(), Addrs: len(p.Addrs), Protocols: len(p.Protocols), Recalled: len(p.Recalled),
						Connected: p.Connected, LastSeen: p.LastSeen,
					})
				}
			}
			slices.SortFunc(list, func(a, b PeerSummary) int {
				if a.Connected != b.Connected {
					if a.Connected {
						return -1
					}
					return 1
				}
				return cmp.Or(b.LastSeen.Compare(a.LastSeen), cmp.Compare(a.Peer, b.Peer))
			})
			for i := range list {
				if err := re.Emit(&list[i]); err != nil {
					return err
				}
			}
			return nil
		},
		Type: PeerSummary{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, p *PeerSummary) error {
				line := p.Peer
				if !option[bool](req, quietOption) {
					line += " " + count(p.Addrs, "address", "addresses") + ", " + count(p.Protocols, "protocol", "protocols")
					if p.Protocols == 0 && p.Recalled > 0 {
						line += fmt.Sprintf(" (%s recalled)", humanize.Comma(int64(p.Recalled)))
					}
					line += ", " + contact(p.Connected, p.LastSeen)
				}
				_, err := fmt.Fprintln(w, line)
				return err
			}),
		},
	}
}

// count is a number of things, for people.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return humanize.Comma(int64(n)) + " " + many
}

// contact says when a peer was there.
func contact(connected bool, seen time.Time) string {
	switch {
	case connected:
		return "connected"
	case seen.IsZero():
		return "never met"
	}
	return "seen " + strings.Replace(humanize.Time(seen), "now", "just now", 1)
}

// PeerRecord is everything that is known of a peer.
type PeerRecord struct {
	Peer      string
	Connected bool
	LastSeen  time.Time     `json:",omitzero"`
	Latency   string        `json:",omitempty"`
	PublicKey string        `json:",omitempty"` // as in IDOutput
	KeyType   string        `json:",omitempty"`
	Addrs     []AddrRecord  // by address
	Protocols []protocol.ID // that it speaks
	Recalled  []protocol.ID // that it has spoken before, and nobody has confirmed since
	Metadata  map[string]string
}

// AddrRecord is an address of a peer, and who says so.
type AddrRecord struct {
	Addr   string
	Claims []AddrClaim
	Good   time.Time `json:",omitzero"` // when it was last dialled with success
}

// AddrClaim is one source's word for an address.
type AddrClaim struct {
	Source    string
	TTL       string    // a duration, "connected" or "permanent"
	Expires   time.Time `json:",omitzero"` // never if it is not there
	Certified bool      // the peer has signed it
}

// The TTLs that are no durations.
const (
	connectedTTL = "connected"
	permanentTTL = "permanent"
)

// recordOf is what the store knows of a peer, as it is printed.
func recordOf(p peerstore.Info) (*PeerRecord, error) {
	out := &PeerRecord{
		Peer: p.ID.String(), Connected: p.Connected, LastSeen: p.LastSeen,
		Addrs: []AddrRecord{}, Protocols: append([]protocol.ID{}, p.Protocols...), Recalled: append([]protocol.ID{}, p.Recalled...),
		Metadata: make(map[string]string),
	}
	if p.Latency > 0 {
		out.Latency = p.Latency.Round(time.Microsecond).String()
	}
	if p.PublicKey != nil {
		raw, err := crypto.MarshalPublicKey(p.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("encode key of %s: %w", p.ID, err)
		}
		out.PublicKey, out.KeyType = base64.StdEncoding.EncodeToString(raw), p.PublicKey.Type().String()
	}
	for _, a := range p.Addrs {
		r := AddrRecord{Addr: a.Addr.String(), Claims: []AddrClaim{}, Good: a.Good}
		for _, c := range a.Claims {
			ttl := c.TTL.String()
			switch c.TTL {
			case corestore.ConnectedAddrTTL:
				ttl = connectedTTL
			case corestore.PermanentAddrTTL:
				ttl = permanentTTL
			}
			r.Claims = append(r.Claims, AddrClaim{Source: c.Source.String(), TTL: ttl, Expires: c.Expires, Certified: c.Certified})
		}
		out.Addrs = append(out.Addrs, r)
	}
	slices.SortFunc(out.Addrs, func(a, b AddrRecord) int { return cmp.Compare(a.Addr, b.Addr) })
	for k, v := range p.Metadata {
		switch v := v.(type) {
		case string:
			out.Metadata[k] = v
		case []byte:
			out.Metadata[k] = base64.StdEncoding.EncodeToString(v)
		default:
			out.Metadata[k] = fmt.Sprint(v)
		}
	}
	return out, nil
}

func peerstoreGetCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Show everything that is known of a peer.",
			ShortDescription: `
Prints addresses, with who says so and for how long, protocols, key and other data.
Protocols are recalled if the peer spoke them before this node was started, and has
not said so since.
`,
		},
		Arguments: []cmds.Argument{cmds.StringArg("peer", true, true, "The peer id.").EnableStdin()},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			peers, err := decodePeers(req)
			if err != nil {
				return err
			}
			store, _, err := opened(req, environment)
			if err != nil {
				return err
			}
			for _, id := range peers {
				info, ok := store.Peer(id)
				if !ok {
					return fmt.Errorf("peer %s: nothing is known of it", id)
				}
				out, err := recordOf(info)
				if err != nil {
					return err
				}
				if err := re.Emit(out); err != nil {
					return err
				}
			}
			return nil
		},
		Type: PeerRecord{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, p *PeerRecord) error {
				_, err := io.WriteString(w, p.text(time.Now()))
				return err
			}),
		},
	}
}

// text is a record for people.
func (p *PeerRecord) text(now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n  %s\n", p.Peer, contact(p.Connected, p.LastSeen))
	if p.Latency != "" {
		fmt.Fprintf(&b, "  latency: %s\n", p.Latency)
	}
	if p.KeyType != "" {
		fmt.Fprintf(&b, "  key: %s\n", p.KeyType)
	}
	fmt.Fprintf(&b, "  %s\n", count(len(p.Addrs), "address", "addresses"))
	for _, a := range p.Addrs {
		fmt.Fprintf(&b, "    %s\n", printable(a.Addr))
		for _, c := range a.Claims {
			fmt.Fprintf(&b, "      %s\n", c.text(now))
		}
		if !a.Good.IsZero() {
			fmt.Fprintf(&b, "      dialled with success %s\n", humanize.RelTime(a.Good, now, "ago", "from now"))
		}
	}
	for _, l := range []struct {
		what string
		list []protocol.ID
	}{{"", p.Protocols}, {" recalled", p.Recalled}} {
		if len(l.list) > 0 {
			fmt.Fprintf(&b, "  %s%s\n", count(len(l.list), "protocol", "protocols"), l.what)
		}
		for _, id := range l.list {
			fmt.Fprintf(&b, "    %s\n", printable(string(id)))
		}
	}
	if len(p.Metadata) > 0 {
		b.WriteString("  other data\n")
	}
	for _, k := range slices.Sorted(maps.Keys(p.Metadata)) {
		v := printable(p.Metadata[k])
		if size := len(p.Metadata[k]); size > maxShown {
			v = humanBytes(uint64(size))
		}
		fmt.Fprintf(&b, "    %s: %s\n", printable(k), cmp.Or(v, "(empty)"))
	}
	return b.String()
}

// maxShown is how long a value may be to be shown to people, bytes; of longer ones
// they are told the length.
const maxShown = 200

// text is a claim for people.
func (c AddrClaim) text(now time.Time) string {
	line := c.Source + ": "
	switch {
	case c.TTL == connectedTTL:
		line += "while connected"
	case c.TTL == permanentTTL || c.Expires.IsZero():
		line += "for ever"
	default:
		line += "for " + strings.TrimSpace(humanize.RelTime(now, c.Expires, "", ""))
	}
	if c.Certified {
		line += ", signed by the peer"
	}
	return line
}

// RemovedPeer is a peer that was forgotten.
type RemovedPeer struct{ Peer string }

func peerstoreRmCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Forget peers.",
			ShortDescription: `
Removes everything that is known of peers. Connections stay, and so do the protocols
that a connected peer speaks; what they or other peers say afterwards is new: 'host
swarm disconnect' first to be rid of a peer for now.
`,
		},
		Arguments: []cmds.Argument{cmds.StringArg("peer", true, true, "The peer id.").EnableStdin()},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			peers, err := decodePeers(req)
			if err != nil {
				return err
			}
			store, self, err := opened(req, environment)
			if err != nil {
				return err
			}
			// All or none: a typing error is found before anything is gone.
			for _, id := range peers {
				if id == self {
					return fmt.Errorf("forget peer %s: it is this node", id)
				}
				if _, ok := store.Peer(id); !ok {
					return fmt.Errorf("forget peer %s: nothing is known of it", id)
				}
			}
			for _, id := range peers {
				store.Forget(id)
			}
			if err := store.Flush(req.Context); err != nil {
				return err
			}
			for _, id := range peers {
				if err := re.Emit(&RemovedPeer{Peer: id.String()}); err != nil {
					return err
				}
			}
			return nil
		},
		Type: RemovedPeer{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, p *RemovedPeer) error {
				_, err := fmt.Fprintf(w, "removed %s\n", p.Peer)
				return err
			}),
		},
	}
}

// PeerEvent is a change of what is known of a peer.
type PeerEvent struct {
	Time       time.Time // when it was told
	Event      string    // "peer", "change:multiaddrs" or "change:protocols"
	Peer       string
	Multiaddrs []string      `json:",omitempty"` // all of them, now
	Protocols  []protocol.ID `json:",omitempty"` // all of them, now
	Added      []string      `json:",omitempty"`
	Removed    []string      `json:",omitempty"`
}

// eventOf is an event of the store, as it is printed.
func eventOf(e peerstore.Event, now time.Time) *PeerEvent {
	out := &PeerEvent{Time: now, Event: e.Name(), Peer: e.Of().String()}
	addrs := func(list []multiaddr.Multiaddr) (text []string) {
		for _, a := range list {
			text = append(text, a.String())
		}
		return text
	}
	switch e := e.(type) {
	case peerstore.EvtPeerAddrsChanged:
		out.Multiaddrs, out.Added, out.Removed = addrs(e.Addrs), addrs(e.Added), addrs(e.Removed)
	case peerstore.EvtPeerProtocolsChanged:
		out.Protocols = e.Protocols
		out.Added, out.Removed = protocol.ConvertToStrings(e.Added), protocol.ConvertToStrings(e.Removed)
	}
	return out
}

func peerstoreEventsCommand() *cmds.Command {
	const replayOption = "replay"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Print changes as they happen.",
			ShortDescription: `
Prints which peers are found, and what changes of their addresses and protocols, until
it is interrupted; with peers given, of these alone. Who reads slowly is told less
often, of what has changed in all.
`,
		},
		Arguments: []cmds.Argument{cmds.StringArg("peer", false, true, "The peer id.")},
		Options:   []cmds.Option{cmds.BoolOption(replayOption, "Begin with what is known, as if it were found now.")},
		NoLocal:   true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			peers, err := decodePeers(req)
			if err != nil {
				return err
			}
			store, self, err := opened(req, environment)
			if err != nil {
				return err
			}
			mode := peerstore.Changes
			if option[bool](req, replayOption) {
				mode = peerstore.Replay
			}
			changes := store.Subscribe(mode)
			defer changes.Close()
			ctx, end := env(environment).endless(req.Context)
			defer end()
			// Over HTTP the client hears that it has begun, however long nothing happens.
			if f, ok := re.(interface{ Flush() }); ok {
				f.Flush()
			}
			for {
				e, err := changes.Next(ctx)
				if errors.Is(err, errs.Closed) {
					return errStopping
				}
				if err != nil {
					return cmp.Or(context.Cause(ctx), err)
				}
				if e.Of() == self || len(peers) > 0 && !slices.Contains(peers, e.Of()) {
					continue
				}
				if err := re.Emit(eventOf(e, time.Now())); err != nil {
					return err
				}
			}
		},
		Type: PeerEvent{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, e *PeerEvent) error {
				var b strings.Builder
				fmt.Fprintf(&b, "%s %s %s\n", e.Time.Local().Format("15:04:05.000"), e.Event, e.Peer)
				for _, s := range e.Added {
					fmt.Fprintf(&b, "  + %s\n", printable(s))
				}
				for _, s := range e.Removed {
					fmt.Fprintf(&b, "  - %s\n", printable(s))
				}
				_, err := io.WriteString(w, b.String())
				return err
			}),
		},
	}
}
