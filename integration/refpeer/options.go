package refpeer

import "time"

// An Option changes what New makes.
type Option func(*config)

type config struct {
	lies        map[Misbehaviour]bool
	peerTimeout time.Duration
	unit        time.Duration
	seed        uint64
	scripted    bool
	lenient     bool
	record      int
}

func defaults() config {
	return config{
		lies:        make(map[Misbehaviour]bool),
		peerTimeout: 60 * time.Second,
		unit:        time.Second,
		seed:        1,
		record:      64 << 20,
	}
}

// A Misbehaviour is a way to lie to remotes. Everything else about a lying peer
// stays as it is in an honest one.
type Misbehaviour string

const (
	// ForgedProof plants blocks: a leaf is delivered with other data of the
	// same length, which hashes to its own CID, and with a proof of the right
	// index and shape which therefore leads to another root. This is what the
	// reference lets through.
	ForgedProof Misbehaviour = "forged proof"
	// WrongIndex delivers, for a leaf, the genuine block and proof of the next
	// leaf; in a dataset of one block, its own proof with index 1.
	WrongIndex Misbehaviour = "wrong index"
	// WrongLength delivers blocks without their last byte, under the CID that
	// the rest hashes to; leaves keep their proof.
	WrongLength Misbehaviour = "wrong length"
	// NotHashing delivers blocks with a changed byte under their own CID. The
	// empty block gets one byte.
	NotHashing Misbehaviour = "data does not hash"
	// ProofMissing delivers leaves without a proof.
	ProofMissing Misbehaviour = "proof missing"
	// UnrequestedPush answers each want list also with up to 20 blocks that
	// the remote never named in one, and with one that nobody ever named.
	UnrequestedPush Misbehaviour = "unrequested push"
	// StallAfterHave says HAVE to every want-have, held or not, and never sends
	// a block.
	StallAfterHave Misbehaviour = "stall after have"
)

// Misbehave makes the peer lie to everybody in the given ways.
func Misbehave(ways ...Misbehaviour) Option {
	return func(c *config) {
		for _, w := range ways {
			c.lies[w] = true
		}
	}
}

// PeerTimeout is how long a remote that owes blocks may send none at all before
// the client disconnects it; 60 s unless given.
func PeerTimeout(d time.Duration) Option { return func(c *config) { c.peerTimeout = d } }

// RefreshUnit is the unit of the back-off with which want lists are repeated,
// 1 s unless given: 1, 2, 4 … 32, 36 units.
func RefreshUnit(d time.Duration) Option { return func(c *config) { c.unit = d } }

// Seed chooses the order in which wanted blocks are delivered, and everything
// else that the reference leaves to chance; 1 unless given.
func Seed(n uint64) Option { return func(c *config) { c.seed = n } }

// Scripted turns off all that the peer would say of itself: it reads, records
// and judges, and sends only what Send, SendMessage and Replay are given.
func Scripted() Option { return func(c *config) { c.scripted = true } }

// Lenient makes the client accept what the reference accepts: a leaf whose
// proof is of the right index and hash, wherever it leads. Without this, a Peer
// verifies proofs in full and calls others a BadProof violation.
func Lenient() Option { return func(c *config) { c.lenient = true } }

// RecordBytes is how many bytes of received messages are kept for Received and
// Expect; the oldest go first. 64 MiB unless given.
func RecordBytes(n int) Option { return func(c *config) { c.record = n } }
