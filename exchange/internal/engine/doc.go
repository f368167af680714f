// Package engine makes every decision of the block exchange: whom to ask for
// which block, when to ask somebody else, what to answer to whom and in which
// order. It decides and does nothing: an [Event] and the time go in through
// [Engine.Step], and [Engine.Actions] says what should now happen. There is no
// goroutine, clock, lock or I/O here, and the same events at the same times
// give the same actions. The loop in package exchange owns the one Engine of an
// exchange, carries its actions out and reports back with further events; no
// method may be called from two goroutines at once.
//
// The engine sees addresses, peers, sizes and times, never the bytes of a block
// and no wire format. What it is told of a received block has been verified.
//
// # Asking
//
// A getter is one request; its wants wait in a backlog, and a window of them is
// active. An active [want] is in exactly one of four places:
//
//	seeking  nobody is known who could be asked: peers are told want-have, and
//	         after a while providers are searched for     (list of its session)
//	ready    somebody can be asked, as soon as there is room  (list of its getter)
//	asked    one peer has been sent want-block              (list of that peer)
//	left     another who wants it too is to fetch it, and hands it on  (list of that peer)
//
// Between a want and a peer stands a [link]: what the peer was told, and what it
// said. The links of a peer are its peer context record: what it has and we
// want, and at which price. A getter belongs to a [session], whose members are
// the peers that had blocks of it before; members that proved themselves are
// asked without being probed first, in proportion to how often that went well.
//
//	want.go     wants, getters and sessions
//	peer.go     what is known of a peer, how fast it is, how much to ask of it
//	choose.go   which peer is asked next for which want
//	answer.go   presences, blocks, bad blocks, time-outs
//	outbox.go   what is said to a peer, put into messages
//	crowd.go    peers that want what we want: who fetches what, and who helps whom
//	search.go   asking again, and searching providers
//
// # Serving
//
// What peers ask for stands in the [ledger] until it is served, cancelled or the
// peer leaves. Who was sent least is served next, each in the order it asked, but
// for what several ask for: of that everybody gets another part first.
//
//	ledger.go   who wants what of us, within bounds
//	serve.go    looking up, taking turns, filling messages
package engine
