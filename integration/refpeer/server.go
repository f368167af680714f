package refpeer

import (
	"fmt"
	"slices"
)

const (
	presenceBatch    = 1024 // presences in one message
	blocksPerMessage = 20   // blocks in one message, whatever their size
)

// takeWants answers a want list. That it is full means nothing: earlier wants
// stay.
func (p *Peer) takeWants(r *remote, w WantList) {
	var ps []Presence
	flush := func() {
		if len(ps) > 0 {
			p.send(r, Message{Presences: ps})
			ps = nil
		}
	}
	asked := false
	for _, e := range w.Entries {
		a := e.Address
		r.named[a] = true
		if p.cfg.scripted {
			continue
		}
		switch {
		case e.Cancel:
			delete(r.wanted, a)
		case e.Type == WantBlock:
			r.wanted[a] = true // no presence, held or not
			asked = true
		case r.wanted[a]: // a want-have is not answered while the block is wanted
		case p.has(a):
			ps = append(ps, Presence{Address: a, Type: Have, Price: make([]byte, 32)})
		case e.SendDontHave:
			ps = append(ps, Presence{Address: a, Type: DontHave, Price: make([]byte, 32)})
		}
		if len(ps) == presenceBatch {
			flush()
		}
	}
	flush()
	if asked {
		p.serve(r)
	}
	if p.cfg.lies[UnrequestedPush] && !p.cfg.scripted {
		p.push(r)
	}
}

func (p *Peer) has(a Address) bool {
	if p.cfg.lies[StallAfterHave] {
		return true
	}
	_, ok := p.store.get(a)
	return ok
}

// serve sends a remote all that it wants and we have, except what is on its
// way already. A want whose block is missing stays until it can be served.
func (p *Peer) serve(r *remote) {
	if p.cfg.lies[StallAfterHave] {
		return
	}
	var task []Address
	for a := range r.wanted {
		if _, ok := p.store.get(a); ok && !r.sending[a] {
			task = append(task, a)
		}
	}
	p.shuffle(sorted(task))
	for _, a := range task {
		r.sending[a] = true
	}
	sent := 0
	for batch := range slices.Chunk(task, blocksPerMessage) {
		sent += len(batch)
		last := sent == len(task)
		var m Message
		for _, a := range batch {
			m.Deliveries = append(m.Deliveries, p.deliver(a))
		}
		r.payload = append(r.payload, outgoing{msg: m, begin: func() {
			// Here, and not after the write, so that a remote that asks
			// again for what it has just got is always heard.
			for _, a := range batch {
				delete(r.wanted, a)
			}
			if last {
				for _, a := range task {
					delete(r.sending, a)
				}
			}
			p.counters.BlocksSent += len(batch)
		}})
	}
	if len(task) > 0 {
		r.nudge()
	}
}

func (p *Peer) shuffle(as []Address) {
	p.rng.Shuffle(len(as), func(i, j int) { as[i], as[j] = as[j], as[i] })
}

// deliver makes the delivery of a held block, true or false as configured.
func (p *Peer) deliver(a Address) Delivery {
	d, _ := p.store.get(a)
	lies := p.cfg.lies
	if a.Leaf && d.Proof != nil {
		switch {
		case lies[ForgedProof]:
			d.Data = changed(d.Data)
			d.Cid = BlockCid(d.Data)
		case lies[WrongIndex]:
			next := Leaf(a.Cid, (a.Index+1)%d.Proof.Leaves)
			if n, ok := p.store.get(next); ok && next != a {
				d.Cid, d.Data, d.Proof = n.Cid, n.Data, n.Proof
			} else {
				proof := *d.Proof
				proof.Index++
				d.Proof = &proof
			}
		case lies[ProofMissing]:
			d.Proof = nil
		}
	}
	if lies[WrongLength] && len(d.Data) > 0 {
		d.Data = d.Data[:len(d.Data)-1]
		c, err := hashAs(d.Cid, d.Data)
		if err != nil {
			panic(fmt.Sprintf("refpeer: hash of %s, which it passed before: %v", cidString(d.Cid), err))
		}
		d.Cid = c
	}
	if lies[NotHashing] {
		d.Data = changed(d.Data)
	}
	return d
}

// changed returns other data of the same length, or one byte for none.
func changed(data []byte) []byte {
	if len(data) == 0 {
		return []byte{1}
	}
	data = slices.Clone(data)
	data[0] ^= 0xff
	return data
}

// push sends blocks that the remote has not named, and one made up.
func (p *Peer) push(r *remote) {
	var as []Address
	for _, a := range p.store.held() {
		if !r.named[a] {
			as = append(as, a)
		}
	}
	p.shuffle(as)
	var m Message
	for _, a := range as[:min(len(as), blocksPerMessage)] {
		m.Deliveries = append(m.Deliveries, p.deliver(a))
	}
	junk := fmt.Appendf(nil, "nobody asked for %x", p.rng.Uint64())
	c := BlockCid(junk)
	m.Deliveries = append(m.Deliveries, Delivery{Cid: c, Data: junk, Address: Block(c)})
	r.payload = append(r.payload, outgoing{msg: m, begin: func() { p.counters.BlocksSent += len(m.Deliveries) }})
	r.nudge()
}

// arrived is called for blocks that are newly in the store: wants for exactly
// these addresses are served, and what the client waited for is done and
// withdrawn from whom it was asked, except from those it came from.
func (p *Peer) arrived(as []Address, from *remote) {
	withdraw := make(map[*remote][]Address)
	for _, a := range as {
		p.complete(a)
		for _, r := range p.remotes {
			if r != from && r.outstanding[a] {
				withdraw[r] = append(withdraw[r], a)
			}
		}
	}
	for _, r := range p.inOrder() {
		if slices.ContainsFunc(as, func(a Address) bool { return r.wanted[a] }) && !p.cfg.scripted {
			p.serve(r)
		}
		if out := withdraw[r]; len(out) > 0 {
			p.send(r, Cancel(out...))
			for _, a := range out {
				delete(r.has, a)
			}
		}
	}
}
