package lend

import (
	"github.com/codexchange/codexchange/plugin/heap"
	"github.com/codexchange/codexchange/plugin/memory"
	"github.com/codexchange/codexchange/plugin/pb"
)

// shared is the memory that one incarnation of the plugin shares with the host.
// Where there is none, everything crosses by the byte channels.
type shared struct {
	inbound  *memory.Memory // bytes of streams
	outbound *memory.Memory // payload of results
}

// counted is how much of it the host's collector counts, bytes: about what an exchange
// in this process has on its heap of blocks that are on their way.
const counted = memory.Inbound / 4

func (l *Lender) share() (s shared) {
	if l.opts.NoMemory {
		return s
	}
	var err error
	if s.inbound, err = memory.MakeInbound(memory.Inbound); err == nil {
		s.outbound, err = memory.MakeOutbound(memory.Outbound)
	}
	if err != nil {
		l.opts.Log.Debug("no memory is shared with a plugin", "plugin", l.opts.Name, "err", err)
		s.close()
		return shared{}
	}
	l.counting.Do(func() { l.uncount = heap.Count(counted) })
	return s
}

func (s shared) close() {
	for _, m := range []*memory.Memory{s.inbound, s.outbound} {
		if m != nil {
			m.Close()
		}
	}
}

func (s shared) fill(r *pb.StartRequest) {
	r.Inbound, r.Outbound = message(s.inbound), message(s.outbound)
}

func message(m *memory.Memory) *pb.Memory {
	if m == nil {
		return nil
	}
	return &pb.Memory{Path: m.Path(), Size: uint64(m.Size())}
}

// Inbound is where bytes of streams are put, if the plugin says that it has mapped it;
// nil if it was offered none. It is the lease's, as Outbound is: nobody uses it after
// Close, but who holds it.
func (le *Lease) Inbound() *memory.Memory { return le.shared.inbound }

// Returned takes back regions of Inbound; see channel.Listener.
func (le *Lease) Returned(offsets []uint64) error { return le.channels.Returned(offsets) }

// Outbound is where the plugin puts payload of results, if it says that it has
// mapped it; nil if it was offered none.
func (le *Lease) Outbound() *memory.Memory { return le.shared.outbound }
