package exchange

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/codexchange/codexchange/exchange/errs"
)

// meter counts what happens outside the engine.
type meter struct {
	busy      atomic.Int64 // nanoseconds that the loop has worked
	inputs    atomic.Uint64
	malformed atomic.Uint64 // streams closed for a message that could not be read
	rejected  atomic.Uint64 // parts of messages that were ignored
	payments  atomic.Uint64
}

func (m *meter) took(d time.Duration) {
	m.busy.Add(int64(d))
	m.inputs.Add(1)
}

// namespace is that of the reference, whose names are used where the meaning is
// the same.
const namespace = "codex_block_exchange"

// A collector makes Prometheus metrics of an Exchange's counts when it is asked.
type collector struct {
	e     *Exchange
	descs []metric
}

type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*Exchange, Stat) float64
}

func newCollector(e *Exchange) *collector {
	c := &collector{e: e}
	add := func(kind prometheus.ValueType, name, help string, value func(*Exchange, Stat) float64) {
		c.descs = append(c.descs, metric{prometheus.NewDesc(namespace+"_"+name, help, nil, nil), kind, value})
	}
	counter := func(name, help string, value func(Stat) uint64) {
		add(prometheus.CounterValue, name, help, func(_ *Exchange, s Stat) float64 { return float64(value(s)) })
	}
	gauge := func(name, help string, value func(Stat) int) {
		add(prometheus.GaugeValue, name, help, func(_ *Exchange, s Stat) float64 { return float64(value(s)) })
	}
	counter("blocks_received_total", "Blocks received, wanted or not.", func(s Stat) uint64 { return s.BlocksReceived })
	counter("bytes_received_total", "Bytes of blocks received.", func(s Stat) uint64 { return s.BytesReceived })
	counter("blocks_delivered_total", "Blocks handed to getters.", func(s Stat) uint64 { return s.Delivered })
	counter("blocks_sent_total", "Blocks sent.", func(s Stat) uint64 { return s.BlocksSent })
	counter("bytes_sent_total", "Bytes of blocks sent.", func(s Stat) uint64 { return s.BytesSent })
	counter("duplicate_blocks_received_total", "Blocks that had come from another peer before.", func(s Stat) uint64 { return s.DuplicateBlocks })
	counter("duplicate_bytes_received_total", "Bytes of blocks that had come from another peer before.", func(s Stat) uint64 { return s.DuplicateBytes })
	counter("spurious_blocks_received_total", "Blocks that were not asked of the peer that sent them.", func(s Stat) uint64 { return s.UnrequestedBlocks })
	counter("bad_blocks_received_total", "Blocks that did not hash to their CID, or were proven wrongly.", func(s Stat) uint64 { return s.BadBlocks })
	counter("want_blocks_sent_total", "Want-blocks sent.", func(s Stat) uint64 { return s.Asked })
	counter("requests_timed_out_total", "Want-blocks without an answer in time.", func(s Stat) uint64 { return s.TimedOut })
	counter("requests_hedged_total", "Want-blocks sent to a second peer because the first was late.", func(s Stat) uint64 { return s.Hedged })
	counter("haves_received_total", "Announcements of wanted blocks.", func(s Stat) uint64 { return s.HavesReceived })
	counter("dont_haves_received_total", "Refusals of wanted blocks.", func(s Stat) uint64 { return s.DontHavesReceived })
	counter("peer_wants_dropped_total", "Wants of peers that asked for too much.", func(s Stat) uint64 { return s.WantsDropped + s.WantsEvicted })
	counter("sends_failed_total", "Messages that could not be sent.", func(s Stat) uint64 { return s.SendsFailed })
	counter("peers_shunned_total", "Peers that sent too many bad blocks.", func(s Stat) uint64 { return s.PeersShunned })
	counter("discovery_requests_total", "Searches for providers.", func(s Stat) uint64 { return s.Searches })
	counter("read_ahead_used_total", "Blocks that were fetched before they were asked for.", func(s Stat) uint64 { return s.ReadAheadUsed })
	counter("read_ahead_used_bytes_total", "Bytes of them.", func(s Stat) uint64 { return s.ReadAheadUsedBytes })
	counter("read_ahead_wasted_total", "Blocks that were to be fetched, and were not asked for.", func(s Stat) uint64 { return s.ReadAheadWasted })
	counter("read_ahead_wasted_bytes_total", "Bytes of them.", func(s Stat) uint64 { return s.ReadAheadWastedBytes })
	gauge("read_ahead_bytes", "Bytes of blocks held or under way that were not asked for yet.", func(s Stat) int { return s.ReadAhead })
	counter("providers_found_total", "Providers that were found and connected to.", func(s Stat) uint64 { return s.ProvidersFound })
	gauge("peers", "Connected peers that speak the protocol.", func(s Stat) int { return s.Peers })
	gauge("pending_block_requests", "Active wants.", func(s Stat) int { return s.Wants })
	gauge("getters", "Requests under way.", func(s Stat) int { return s.Getters })
	gauge("peer_wants", "Wants of peers that stand.", func(s Stat) int { return s.Asks })
	gauge("sending_bytes", "Bytes of blocks in memory on their way out.", func(s Stat) int { return s.Flying })

	meters := func(name, help string, value func(*meter) uint64) {
		add(prometheus.CounterValue, name, help, func(e *Exchange, _ Stat) float64 { return float64(value(&e.meter)) })
	}
	meters("malformed_messages_total", "Streams closed for a message that could not be read.", func(m *meter) uint64 { return m.malformed.Load() })
	meters("rejected_items_total", "Parts of messages that were ignored.", func(m *meter) uint64 { return m.rejected.Load() })
	meters("payments_ignored_total", "Payments received and ignored.", func(m *meter) uint64 { return m.payments.Load() })
	meters("loop_inputs_total", "Inputs that the loop has taken.", func(m *meter) uint64 { return m.inputs.Load() })
	add(prometheus.CounterValue, "loop_busy_seconds_total",
		"Seconds that the loop has worked. Its rate is the saturation: at 1 the loop is the limit.",
		func(e *Exchange, _ Stat) float64 { return time.Duration(e.meter.busy.Load()).Seconds() })
	add(prometheus.GaugeValue, "loop_inbox_length", "Inputs that wait for the loop.",
		func(e *Exchange, _ Stat) float64 { return float64(len(e.inbox)) })
	return c
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range c.descs {
		ch <- m.desc
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.e.Stat()
	for _, m := range c.descs {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(c.e, s))
	}
}

// register puts the collector into a registry, if there is one, and returns what
// takes it out again.
func (e *Exchange) register(r prometheus.Registerer) (unregister func(), err error) {
	if r == nil {
		return func() {}, nil
	}
	c := newCollector(e)
	if err := r.Register(c); err != nil {
		return nil, errs.E(errs.Invalid, errs.Caller, "register metrics", "", err)
	}
	return func() { r.Unregister(c) }, nil
}
