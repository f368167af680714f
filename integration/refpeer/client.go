package refpeer

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	wantBatch    = 1024 // want-haves in one message
	window       = 1024 // blocks of a dataset that are wanted at a time
	refill       = 768  // added when as many have come
	maxBackOff   = 36   // units between repeated want lists
	maxPriceSize = 32   // bytes; presences with more are ignored
)

// clientState is what the client knows of one remote.
type clientState struct {
	has         map[Address]bool // it sent a presence for; always something we want
	outstanding map[Address]bool // it was asked to send
	withdrawn   map[Address]bool // it was asked not to send after all
	dontHaveOK  map[Address]bool // it was asked to say DONT_HAVE
	lastSent    map[Address]bool // it was sent a want-have for
	active      time.Time        // last block from it, or when it began to owe some

	refreshed  time.Time // last want list; zero before the first
	refreshing bool      // it has not answered that yet
	backOff    int       // units until the next
	seenSeq    int       // wantSeq at that time
}

func newClientState() clientState {
	return clientState{
		has:         make(map[Address]bool),
		outstanding: make(map[Address]bool),
		withdrawn:   make(map[Address]bool),
		dontHaveOK:  make(map[Address]bool),
		lastSent:    make(map[Address]bool),
		backOff:     1,
	}
}

// A want is an address that somebody waits for.
type want struct {
	from    peer.ID // whom it was requested from; "" if nobody
	waiters []*fetch
}

// A fetch is one call of Fetch or FetchDataset.
type fetch struct {
	open map[Address]bool // guarded by Peer.mu
	wake chan struct{}    // holds a token when open has shrunk
}

// Fetch downloads blocks and returns them in the order of their addresses. All
// of them are wanted at once. Blocks that are already held are not asked for.
// It asks every remote that is connected or connects meanwhile, and ends with
// ctx, after which nothing is withdrawn from remotes.
func (p *Peer) Fetch(ctx context.Context, addrs ...Address) ([][]byte, error) {
	return p.fetch(ctx, addrs, len(addrs), len(addrs))
}

// FetchDataset downloads the n blocks of a dataset by leaf address, of which at
// most 1024 are wanted at any time, and returns them by index. The last one is
// as long as the others. The manifest is not needed; fetch it by CID.
func (p *Peer) FetchDataset(ctx context.Context, tree cid.Cid, n int) ([][]byte, error) {
	return p.fetch(ctx, Leaves(tree, n), window, refill)
}

func (p *Peer) fetch(ctx context.Context, addrs []Address, window, refill int) ([][]byte, error) {
	if p.cfg.scripted {
		return nil, fmt.Errorf("refpeer: fetch: the peer is scripted")
	}
	f := &fetch{open: make(map[Address]bool), wake: make(chan struct{}, 1)}
	for next, add := 0, window; ; {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, errClosed
		}
		if next < len(addrs) && len(f.open) <= window-refill {
			end := min(next+add, len(addrs))
			p.want(f, addrs[next:end])
			next, add = end, refill
		}
		open := len(f.open)
		p.mu.Unlock()
		switch {
		case open == 0 && next == len(addrs):
			return p.collect(addrs)
		case open == 0:
			continue // all of it was held; the next lot
		}
		select {
		case <-f.wake:
		case <-ctx.Done():
			return nil, p.abandon(f, len(addrs)-next, ctx.Err())
		case <-p.ctx.Done():
			return nil, p.abandon(f, len(addrs)-next, errClosed)
		}
	}
}

// want registers all addresses first, and only then asks for them.
func (p *Peer) want(f *fetch, addrs []Address) {
	for _, a := range addrs {
		if _, ok := p.store.get(a); ok || f.open[a] {
			continue
		}
		f.open[a] = true
		w := p.wants[a]
		if w == nil {
			w = new(want)
			p.wants[a] = w
			p.wantSeq++
		}
		w.waiters = append(w.waiters, f)
	}
	p.askAgain()
	p.refreshAll()
}

func (p *Peer) collect(addrs []Address) ([][]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([][]byte, len(addrs))
	for i, a := range addrs {
		d, ok := p.store.get(a)
		if !ok {
			return nil, fmt.Errorf("refpeer: fetch %s: came and is gone", a)
		}
		out[i] = d.Data
	}
	return out, nil
}

// abandon gives up what a fetch still waits for. Remotes are told nothing.
func (p *Peer) abandon(f *fetch, unasked int, cause error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	for _, a := range sorted(slices.Collect(maps.Keys(f.open))) {
		w := p.wants[a]
		w.waiters = slices.DeleteFunc(w.waiters, func(other *fetch) bool { return other == f })
		if len(w.waiters) == 0 {
			delete(p.wants, a)
		}
		if b.Len() < 400 {
			fmt.Fprintf(&b, " %s", a)
		}
	}
	return fmt.Errorf("refpeer: fetch: %d blocks have not come, %d more not asked for, first%s: %w",
		len(f.open), unasked, b.String(), cause)
}

// complete ends the want of an address that has come.
func (p *Peer) complete(a Address) {
	w := p.wants[a]
	if w == nil {
		return
	}
	delete(p.wants, a)
	for _, f := range w.waiters {
		delete(f.open, a)
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
}

// tick does what depends on time, four times per unit.
func (p *Peer) tick() {
	every := time.NewTicker(max(p.cfg.unit/4, time.Millisecond))
	defer every.Stop()
	for {
		select {
		case <-every.C:
		case <-p.ctx.Done():
			return
		}
		p.mu.Lock()
		slow := p.dropInactive()
		p.askAgain()
		p.refreshAll()
		p.mu.Unlock()
		for _, id := range slow {
			p.Disconnect(id) // fails only if it has gone by itself
		}
	}
}

// dropInactive forgets remotes that owe wanted blocks and have sent none for
// the timeout, and returns them, to be disconnected.
func (p *Peer) dropInactive() (slow []peer.ID) {
	for _, w := range p.wants {
		r := p.remotes[w.from]
		if w.from != "" && r != nil && time.Since(r.active) > p.cfg.peerTimeout {
			p.counters.Disconnects++
			p.forget(r)
			slow = append(slow, r.id)
		}
	}
	return slow
}

// askAgain requests what nobody is asked for though somebody has it, one
// message for each block.
func (p *Peer) askAgain() {
	var free []Address
	for a, w := range p.wants {
		if w.from == "" {
			free = append(free, a)
		}
	}
	for _, a := range sorted(free) {
		if r := p.choose(a); r != nil {
			p.request(r, a)
		}
	}
}

// choose picks one of those that have a block, by a draw in which the less busy
// weigh more.
func (p *Peer) choose(a Address) *remote {
	var holders []*remote
	most := 0
	for _, r := range p.inOrder() {
		if r.has[a] {
			holders = append(holders, r)
			most = max(most, len(r.outstanding))
		}
	}
	total := 0
	for _, r := range holders {
		total += 2*(most-len(r.outstanding)) + 1
	}
	if total == 0 {
		return nil
	}
	draw := p.rng.IntN(total)
	for _, r := range holders {
		draw -= 2*(most-len(r.outstanding)) + 1
		if draw < 0 {
			return r
		}
	}
	return nil
}

// request asks one remote for blocks, all in one message, however many.
func (p *Peer) request(r *remote, as ...Address) {
	for _, a := range as {
		p.wants[a].from = r.id
	}
	p.send(r, Want(WantBlock, false, as...))
}

// refreshAll asks around, if there is a want that nobody is known to have.
func (p *Peer) refreshAll() {
	homeless := false
	for a := range p.wants {
		found := false
		for _, r := range p.remotes {
			found = found || r.has[a]
		}
		homeless = homeless || !found
	}
	if !homeless {
		return
	}
	for _, r := range p.inOrder() {
		p.refresh(r)
	}
}

// refresh sends a remote want-haves for what it has not announced: all of it if
// the last time is long enough ago, otherwise what it was not sent before.
func (p *Peer) refresh(r *remote) {
	if p.cfg.scripted {
		return
	}
	stale := time.Since(r.refreshed) > time.Duration(r.backOff)*p.cfg.unit
	if r.refreshing {
		if !stale {
			return
		}
		r.refreshing, r.backOff = false, 1
	}
	if !stale && r.seenSeq == p.wantSeq {
		return
	}
	full := stale || len(r.lastSent) == 0
	if full {
		clear(r.lastSent)
	}
	var list []Address
	for a := range p.wants {
		if !r.has[a] && !r.lastSent[a] {
			list = append(list, a)
		}
	}
	fresh := r.seenSeq != p.wantSeq
	r.refreshed, r.seenSeq = time.Now(), p.wantSeq
	if len(list) == 0 {
		return
	}
	r.refreshing = true
	if fresh {
		r.backOff = 1
	}
	p.shuffle(sorted(list))
	for first := true; len(list) > 0; first = false {
		n := min(wantBatch, len(list))
		p.send(r, Want(WantHave, full && first, list[:n]...))
		for _, a := range list[:n] {
			r.lastSent[a] = true
		}
		list = list[n:]
	}
}

// noteSent remembers what a message, of the engine or of a script, entitles the
// remote to answer.
func (p *Peer) noteSent(r *remote, m Message) {
	for _, e := range m.WantList.Entries {
		a := e.Address
		if e.SendDontHave {
			r.dontHaveOK[a] = true
		}
		switch {
		case e.Cancel:
			if r.outstanding[a] {
				delete(r.outstanding, a)
				r.withdrawn[a] = true
			}
		case e.Type == WantBlock:
			if len(r.outstanding) == 0 {
				r.active = time.Now()
			}
			r.outstanding[a] = true
			delete(r.withdrawn, a)
		}
	}
}

// takePresences learns what a remote has. It takes every presence for a HAVE,
// even DONT_HAVE: that is the reference's trap. What it then may request from
// this remote, it requests in one message, uncut.
func (p *Peer) takePresences(r *remote, ps []Presence) {
	r.refreshing = false
	r.backOff = min(2*r.backOff, maxBackOff)
	for _, pr := range ps {
		a := pr.Address
		if pr.Type == DontHave && !r.dontHaveOK[a] {
			p.violate(r.id, UnaskedDontHave, "DONT_HAVE %s: nobody asked to be told", a)
		}
		if len(pr.Price) > maxPriceSize || p.wants[a] == nil {
			continue
		}
		if !r.has[a] {
			r.has[a] = true
			r.backOff = 1
		}
	}
	var ask []Address
	for a := range r.has {
		switch w := p.wants[a]; {
		case w == nil:
			delete(r.has, a)
		case w.from == "":
			ask = append(ask, a)
		}
	}
	if len(ask) > 0 {
		p.request(r, sorted(ask)...)
	}
}

// takeBlocks checks and stores what a remote delivers.
func (p *Peer) takeBlocks(r *remote, ds []Delivery) {
	var stored []Address
	for _, d := range ds {
		a := d.Address
		r.active = time.Now() // even for blocks that nobody wanted
		if !r.outstanding[a] {
			p.counters.Spurious++
			if !r.withdrawn[a] {
				p.violate(r.id, Spurious, "%s: not requested, or delivered before", d)
			}
			continue
		}
		delete(r.outstanding, a)
		if err := p.validate(d); err != nil {
			p.counters.Refused++
			kind := BadBlock
			if a.Leaf {
				kind = BadProof
			}
			p.violate(r.id, kind, "%s: %v", d, err)
			continue
		}
		if p.wants[a] == nil {
			p.counters.NotPending++
			continue
		}
		p.store.put(d.Cid, d.Data)
		if a.Leaf {
			p.store.putLeaf(a, d.Cid, *d.Proof)
		}
		delete(r.has, a)
		p.counters.Accepted++
		stored = append(stored, a)
	}
	if len(stored) > 0 {
		p.arrived(stored, r)
	}
}

// validate judges a block that was asked for and hashes to its CID.
func (p *Peer) validate(d Delivery) error {
	switch {
	case !d.Address.Leaf && !sameCid(d.Address.Cid, d.Cid):
		return fmt.Errorf("cid is %s, want %s", cidString(d.Cid), d.Address)
	case !d.Address.Leaf:
		return nil
	case p.cfg.lenient:
		_, _, err := checkProof(d.Cid, d.Address, d.Proof)
		return err
	}
	return verify(d.Cid, d.Address, d.Proof)
}
