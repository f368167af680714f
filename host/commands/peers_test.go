package commands

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	corestore "github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/routing"
	"github.com/multiformats/go-multiaddr"

	"github.com/codexchange/codexchange/host/peerstore"
	"github.com/codexchange/codexchange/host/repo"
)

// Peers that nobody is.
const (
	someone = "12D3KooWE6RLfkVrVFbRJbwHQq3NcYek1tJaLqcFE9Xp5TwXrDU9"
	another = "12D3KooWBcLPYa8oJShLa8NBLkqEXWgNR5ZTWhXV3ZdE4gF3QfYt"
	at      = "/ip4/192.0.2.7/tcp/4001"
	at2     = "/ip4/192.0.2.8/tcp/4001"
)

// The list of bootstrap peers is printed and changed as Kubo does it, each address
// once; "auto" stays one entry.
func TestBootstrap(t *testing.T) {
	s := newShell(t)
	first, second, third := at+"/p2p/"+someone, at2+"/p2p/"+someone, at+"/p2p/"+another
	s.prints("", "bootstrap")
	s.prints(`{"Peers":[]}`+"\n", "--enc=json", "bootstrap", "list")
	s.prints("added "+first+"\nadded "+second+"\n", "bootstrap", "add", second, first)
	s.prints("", "bootstrap", "add", first)
	if o := s.feed(t.Context(), third+"\n", "bootstrap", "add"); o.stdout != "added "+third+"\n" || o.code != ExitOK {
		t.Errorf("want that a peer from stdin is added\n%v", o)
	}
	s.prints("added auto\n", "bootstrap", "add", "default")
	s.prints(`{"Peers":["`+strings.Join([]string{second, first, third, "auto"}, `","`)+`"]}`+"\n", "--enc=json", "bootstrap")
	if got, want := strings.Count(s.ok("bootstrap", "list", "--expand-auto"), "\n"), 3+len(repo.DefaultBootstrap()); got != want {
		t.Errorf("bootstrap list --expand-auto printed %d lines, want %d", got, want)
	}

	s.fails([]string{"bootstrap", "rm", repo.DefaultBootstrap()[0]}, `"auto"`, "add those that shall stay")
	s.prints("removed "+second+"\n", "bootstrap", "rm", second)
	s.prints("", "bootstrap", "rm", second)
	s.prints("added "+second+"\n", "bootstrap", "add", second)
	s.prints("removed "+first+"\nremoved "+second+"\n", "bootstrap", "rm", "/p2p/"+someone)
	s.prints("removed auto\n", "bootstrap", "rm", "auto")
	s.prints("removed "+third+"\n", "bootstrap", "rm", "--all")
	s.prints("", "bootstrap", "rm", "all")

	s.fails([]string{"bootstrap", "add", "nonsense"}, `"nonsense"`, "want a multiaddr")
	s.fails([]string{"bootstrap", "add", at}, "want a multiaddr with the peer")
	s.fails([]string{"bootstrap", "add", "/p2p/" + someone}, "does not say where")
	s.prints("", "bootstrap", "list")
}

// remember writes a peer into the peerstore of a repo.
func remember(t *testing.T, dir string, id peer.ID) {
	t.Helper()
	r, err := repo.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	store, err := peerstore.New(t.Context(), peerstore.Options{Datastore: r.Datastore()})
	if err != nil {
		t.Fatal(err)
	}
	store.AddAddr(id, multiaddr.StringCast(at), corestore.PermanentAddrTTL)
	store.View(peerstore.DHT).AddAddr(id, multiaddr.StringCast(at2), time.Hour)
	for _, err := range []error{
		store.AddProtocols(id, "/a", "/b"),
		store.Put(id, "AgentVersion", "nobody/1.0\x1b"),
		store.Put(id, "long", strings.Repeat("x", 1234)),
		store.Close(), r.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// What was remembered of peers is shown and forgotten without a daemon, too.
func TestPeerstore(t *testing.T) {
	s := newShell(t)
	id, err := peer.Decode(someone)
	if err != nil {
		t.Fatal(err)
	}
	s.prints("", "peerstore", "ls")
	remember(t, s.dir, id)
	s.prints(someone+" 2 addresses, 0 protocols (2 recalled), never met\n", "peerstore", "ls")
	s.prints(someone+"\n", "peerstore", "ls", "-q")
	s.prints(`{"Peer":"`+someone+`","Addrs":2,"Protocols":0,"Recalled":2,"Connected":false}`+"\n", "--enc=json", "peerstore", "ls")
	s.prints(someone+`
  never met
  key: Ed25519
  2 addresses
    `+at+`
      manual: for ever
    `+at2+`
      dht: for 59 minutes
  2 protocols recalled
    /a
    /b
  other data
    AgentVersion: nobody/1.0\x1b
    long: 1.2 kB
`, "peerstore", "get", someone)
	var record PeerRecord
	if err := json.Unmarshal([]byte(s.ok("--enc=json", "peerstore", "get", someone)), &record); err != nil {
		t.Fatal(err)
	}
	if len(record.Addrs) != 2 || record.Addrs[0].Claims[0].TTL != "permanent" || !record.Addrs[0].Claims[0].Expires.IsZero() ||
		time.Until(record.Addrs[1].Claims[0].Expires) > time.Hour || len(record.Recalled) != 2 || record.PublicKey == "" || len(record.Metadata["long"]) != 1234 {
		t.Errorf("peerstore get is %+v, want what was remembered", record)
	}

	self := strings.TrimSpace(s.ok("id", "-f", "<id>"))
	s.fails([]string{"peerstore", "rm", someone, another}, another, "nothing is known")
	s.fails([]string{"peerstore", "rm", self}, "it is this node")
	s.fails([]string{"peerstore", "get", "nonsense"}, `"nonsense"`)
	s.prints("removed "+someone+"\n", "peerstore", "rm", someone)
	s.fails([]string{"peerstore", "get", someone}, "nothing is known")
	s.prints("", "peerstore", "ls")
}

// What needs peers says so where no daemon runs.
func TestPeersNeedDaemon(t *testing.T) {
	s := newShell(t)
	for _, line := range []string{
		"swarm peers -v", "swarm peering ls", "swarm peering add " + at + "/p2p/" + someone, "swarm peering rm " + someone,
		"routing findpeer " + someone, "routing findprovs " + helloCID, "routing provide " + helloCID, "peerstore events",
	} {
		s.fails(strings.Fields(line), "no daemon runs", "start one with 'host daemon'")
	}
}

// A record is told to people in their units.
func TestPeerRecordText(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	p := PeerRecord{
		Peer: someone, Connected: true, Latency: "12ms",
		Addrs: []AddrRecord{{
			Addr: at, Good: now.Add(-3 * time.Hour),
			Claims: []AddrClaim{{Source: "host", TTL: connectedTTL, Certified: true}, {Source: "dht", TTL: "20h0m0s", Expires: now.Add(20 * time.Hour)}},
		}},
		Protocols: []protocol.ID{"/a"},
	}
	want := someone + `
  connected
  latency: 12ms
  1 address
    ` + at + `
      host: while connected, signed by the peer
      dht: for 20 hours
      dialled with success 3 hours ago
  1 protocol
    /a
`
	if got := p.text(now); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got, want := count(12345, "peer", "peers"), "12,345 peers"; got != want {
		t.Errorf("count is %q, want %q", got, want)
	}
}

// A stream is what a command says over HTTP, line by line, until the test or close
// ends it.
type stream struct {
	t     *testing.T
	lines *bufio.Scanner
	close func()
}

// listen begins a command whose client hears that it has begun.
func (s *served) listen(path string, args ...string) stream {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	s.t.Cleanup(cancel)
	q := url.Values{"arg": args}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+path+"?"+q.Encode(), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { res.Body.Close() })
	return stream{s.t, bufio.NewScanner(res.Body), cancel}
}

// next is the next event.
func (s stream) next() (e PeerEvent) {
	s.t.Helper()
	if !s.lines.Scan() {
		s.t.Fatalf("the stream has ended: %v", s.lines.Err())
	}
	if err := json.Unmarshal(s.lines.Bytes(), &e); err != nil || time.Since(e.Time) > time.Minute {
		s.t.Fatalf("event is %s, %v", s.lines.Bytes(), err)
	}
	return e
}

// Changes of what is known of peers are told over the API as they happen, until the
// client goes.
func TestPeerstoreEvents(t *testing.T) {
	s := serve(t, inProcess)
	id, err := peer.Decode(someone)
	if err != nil {
		t.Fatal(err)
	}
	events := s.listen("/peerstore/events")
	store := s.node.Peerstore()
	want := func(event string, all, added, removed []string) {
		t.Helper()
		e := events.next()
		known := slices.Concat(e.Multiaddrs, protocol.ConvertToStrings(e.Protocols))
		if e.Event != event || e.Peer != someone || !slices.Equal(known, all) || !slices.Equal(e.Added, added) || !slices.Equal(e.Removed, removed) {
			t.Fatalf("event is %+v, want %s with %v, of which %v added, %v removed", e, event, all, added, removed)
		}
	}
	store.AddAddr(id, multiaddr.StringCast(at), time.Hour)
	want("peer", nil, nil, nil)
	want("change:multiaddrs", []string{at}, []string{at}, nil)
	if err := store.SetProtocols(id, "/a"); err != nil {
		t.Fatal(err)
	}
	want("change:protocols", []string{"/a"}, []string{"/a"}, nil)
	store.ReplaceAddrs(id, []multiaddr.Multiaddr{multiaddr.StringCast(at2)}, time.Hour)
	want("change:multiaddrs", []string{at2}, []string{at2}, []string{at})
	events.close()

	// Of one peer alone; and by a command line, which ends when it is interrupted.
	other, err := peer.Decode(another)
	if err != nil {
		t.Fatal(err)
	}
	events = s.listen("/peerstore/events", someone)
	store.AddAddr(other, multiaddr.StringCast(at), time.Hour)
	store.Forget(id)
	want("change:multiaddrs", nil, nil, []string{at2})
	events.close()
	ctx, interrupt := context.WithTimeout(t.Context(), 2*time.Second)
	defer interrupt()
	o := s.feed(ctx, "", "peerstore", "events", "--replay")
	if o.code != ExitInterrupted || !strings.Contains(o.stdout, " change:multiaddrs "+another+"\n  + "+at+"\n") || strings.Contains(o.stdout, someone) {
		t.Errorf("want the peer that is known, and exit code %d\n%v", ExitInterrupted, o)
	}
}

// The daemon's own peerstore is shown and changed; swarm peering and swarm peers tell
// what Kubo tells.
func TestPeers(t *testing.T) {
	a, b := serve(t, inProcess), serve(t, inProcess)
	other, self := a.node.Host().ID().String(), b.node.Host().ID().String()
	addr := strings.Fields(a.ok("swarm", "addrs", "local", "--id"))[0]

	where, _, _ := strings.Cut(addr, "/p2p/")
	b.prints("add "+other+" success\n", "swarm", "peering", "add", addr)
	b.prints(other+"\n\t"+where+"\n", "swarm", "peering", "ls")
	b.prints(`{"Peers":[{"ID":"`+other+`","Addrs":["`+where+`"]}]}`+"\n", "--enc=json", "swarm", "peering", "ls")
	b.fails([]string{"swarm", "peering", "add", "/p2p/" + self}, "it is this node")
	b.fails([]string{"swarm", "peering", "add", at}, "want a multiaddr with the peer")
	b.ok("swarm", "connect", addr) // the service may wait a while before it dials
	b.prints(`{"ID":"`+other+`","Status":"success"}`+"\n", "--enc=json", "swarm", "peering", "rm", other)
	b.prints("", "swarm", "peering", "ls")
	b.prints("remove "+other+" success\n", "swarm", "peering", "rm", other)

	got := strings.Split(b.ok("swarm", "peers", "-v"), "\n")
	if words := strings.Fields(got[0]); len(words) != 3 || words[0] != addr || words[2] != "outbound" {
		t.Errorf("swarm peers -v printed %q, want %s, its latency and outbound", got, addr)
	}
	if got := b.ok("swarm", "peers", "--latency"); len(strings.Fields(got)) != 2 {
		t.Errorf("swarm peers --latency printed %q, want address and latency", got)
	}
	if got := a.ok("swarm", "peers", "--direction"); !strings.HasSuffix(got, " inbound\n") {
		t.Errorf("swarm peers --direction printed %q, want inbound", got)
	}
	b.prints(addr+"\n", "swarm", "peers")
	var conns ConnInfos
	if err := json.Unmarshal([]byte(b.ok("--enc=json", "swarm", "peers", "-v")), &conns); err != nil || len(conns.Peers) != 1 {
		t.Fatalf("swarm peers is %+v, %v, want one", conns, err)
	}
	if c := conns.Peers[0]; c.Peer != other || c.Identify.ID != other || len(c.Identify.Protocols) == 0 || c.Muxer == "" {
		t.Errorf("swarm peers -v is %+v, want all of %s", c, other)
	}

	if got := b.ok("peerstore", "ls"); !strings.HasPrefix(got, other+" ") || !strings.HasSuffix(got, ", connected\n") || strings.Contains(got, self) {
		t.Errorf("peerstore ls printed %q, want %s alone, connected", got, other)
	}
	got = strings.Split(b.ok("peerstore", "get", other), "\n")
	for _, want := range []string{"  connected", "  key: Secp256k1", "    " + where, "      host: while connected", "    /codex/blockexc/1.0.0"} {
		if !slices.Contains(got, want) {
			t.Errorf("peerstore get printed\n%s\nwant a line %q", strings.Join(got, "\n"), want)
		}
	}
	b.prints("removed "+other+"\n", "peerstore", "rm", other)
	b.prints("added "+addr+"\n", "bootstrap", "add", addr)
	b.prints(addr+"\n", "bootstrap", "list")
}

const dhtOfTwo = `{"Type":"dhtserver","LoopbackAddressesOnLanDHT":true}`

// A block is provided on one node and found on another, with what Kubo prints; a peer
// is found by its id.
func TestRouting(t *testing.T) {
	a, b := serve(t, inProcess, "Routing", dhtOfTwo), serve(t, inProcess, "Routing", dhtOfTwo)
	addr := strings.Fields(a.ok("swarm", "addrs", "local", "--id"))[0]
	provider := a.node.Host().ID().String()
	a.ok("add", "-r", "--pin=false", makeTree(t))
	b.fails([]string{"routing", "findprovs", treeRoot}, "no peer of the DHT is known: connect to one")
	b.ok("swarm", "connect", addr)

	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) { // until each is in the other's table
		o := a.run("routing", "provide", treeRoot)
		if o.code == ExitOK && b.run("routing", "findprovs", treeRoot).stdout == provider+"\n" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the provider is not found after a minute\n%v", o)
		}
	}
	out := b.ok("routing", "findprovs", "-v", "-n", "1", "/ipfs/"+treeRoot)
	if !strings.Contains(out, ": provider: "+provider+"\n") {
		t.Errorf("findprovs -v printed\n%s\nwant the provider", out)
	}
	if out := a.ok("routing", "provide", "-r", "-v", treeRoot); strings.Count(out, ": provided ") != 10 {
		t.Errorf("provide -r -v printed\n%s\nwant the 10 blocks", out)
	}
	var event routing.QueryEvent
	if err := json.Unmarshal([]byte(b.ok("--enc=json", "routing", "findpeer", provider)), &event); err != nil || event.Type != routing.FinalPeer || len(event.Responses) != 1 || event.Responses[0].ID.String() != provider {
		t.Errorf("findpeer is %+v, %v, want %s", event, err, provider)
	}
	where, _, _ := strings.Cut(addr, "/p2p/")
	if out := b.ok("routing", "findpeer", provider); !slices.Contains(strings.Fields(out), where) {
		t.Errorf("findpeer printed %q, want %s", out, where)
	}

	b.fails([]string{"routing", "findpeer", b.node.Host().ID().String()}, "it is this node")
	b.fails([]string{"routing", "findpeer", another}, another, "not found")
	b.fails([]string{"routing", "findprovs", "-n", "0", treeRoot}, "got 0, want 1 or more")
	b.fails([]string{"routing", "findprovs", "nonsense"}, `"nonsense"`)
	b.fails([]string{"routing", "provide", treeRoot}, "the block is not here")
}

// Without routing that is said, rather than that nobody has a block.
func TestNoRouting(t *testing.T) {
	s := serve(t, inProcess)
	for _, args := range []string{"findprovs " + treeRoot, "findpeer " + someone, "provide " + treeRoot} {
		s.fails(append([]string{"routing"}, strings.Fields(args)...), `Routing.Type of its configuration is "none"`)
	}
	s = serve(t, inProcess, "Routing", dhtOfTwo, "Provide", `{"Enabled":false}`)
	s.fails([]string{"routing", "provide", treeRoot}, "Provide.Enabled")
}
