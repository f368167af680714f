package remote

import (
	"math"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/codexchange/codexchange/exchange/dataset"
	"github.com/codexchange/codexchange/exchange/wire"
	"github.com/codexchange/codexchange/plugin/pb"
)

// A job is something stored that the exchange has to be told of: blocks, or
// leaves of a tree.
type job struct {
	blocks []blocks.Block
	root   cid.Cid
	ranges []wire.Range
	done   chan struct{} // closed when the exchange was told, or will not be
}

func (j *job) size() int { return len(j.blocks) + len(j.ranges) }

// stored has the exchange told of blocks that the host's store has.
func (v *serving) stored(m *pb.Stored) {
	if m.GetMissed() > 0 {
		v.server.opt.Log.Warn("exchange: the host had more new blocks than it could tell", "missed", m.GetMissed())
	}
	j := &job{blocks: make([]blocks.Block, 0, len(m.GetBlocks()))}
	for n, b := range m.GetBlocks() {
		k, err := parseCID(b.GetCid())
		if err != nil {
			v.server.opt.Log.Warn("exchange: a stored block is not named", "block", n+1, "err", err)
			continue
		}
		size := int(min(b.GetSize(), math.MaxInt32))
		j.blocks = append(j.blocks, &lazyBlock{cid: k, size: size, ctx: v.server.ctx, read: v.instance.Read})
	}
	v.addJob(j)
}

func (v *serving) storedLeaves(m *pb.StoredLeaves) {
	root, err := parseCID(m.GetRoot())
	if err != nil {
		v.server.opt.Log.Warn("exchange: stored leaves are of no tree", "err", err)
		return
	}
	j := &job{root: root}
	for _, r := range m.GetRanges() {
		j.ranges = append(j.ranges, wire.Range{First: r.GetFirst(), Count: r.GetCount()})
	}
	v.addJob(j)
}

// addJob queues a job. If an exchange is so slow to listen that more than
// MaxPending blocks wait, the oldest are dropped: it looks into the store when it
// is asked for a block.
func (v *serving) addJob(j *job) {
	if j.size() == 0 {
		return
	}
	j.done = make(chan struct{})
	v.mu.Lock()
	defer v.mu.Unlock()
	dropped := 0
	for len(v.jobs) > 0 && v.jobSize+j.size() > MaxPending {
		dropped += v.jobs[0].size()
		close(v.takeJob().done)
	}
	v.jobs = append(v.jobs, j)
	v.jobSize += j.size()
	v.lastJob = j.done
	if dropped > 0 {
		v.server.opt.Log.Warn("exchange: new blocks come faster than the exchange takes note of them", "dropped", dropped)
	}
	select {
	case v.jobReady <- struct{}{}:
	default:
	}
}

func (v *serving) takeJob() *job {
	if len(v.jobs) == 0 {
		return nil
	}
	j := v.jobs[0]
	v.jobs[0] = nil
	v.jobs = v.jobs[1:]
	v.jobSize -= j.size()
	return j
}

// notify tells the exchange what was stored, in order. An exchange may take its
// time to be told, until getters have taken what they were given; so this is
// nobody's business but this goroutine's, and who asks for blocks afterwards
// waits for it.
func (v *serving) notify() {
	for {
		v.mu.Lock()
		j := v.takeJob()
		v.mu.Unlock()
		if j == nil {
			select {
			case <-v.jobReady:
				continue
			case <-v.ctx.Done():
				return
			}
		}
		var err error
		if len(j.blocks) > 0 {
			err = v.instance.Exchange.NotifyNewBlocks(v.ctx, j.blocks...)
		} else if x, ok := v.instance.Exchange.(dataset.LeafExchange); ok {
			err = x.NotifyNewLeaves(v.ctx, j.root, j.ranges...)
		}
		close(j.done)
		if err != nil {
			v.server.opt.Log.Warn("exchange: it cannot be told of new blocks", "err", err)
		}
		if v.ctx.Err() != nil {
			return
		}
	}
}
