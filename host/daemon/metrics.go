package daemon

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	metricsprometheus "github.com/ipfs/go-metrics-prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/repo"
	"github.com/codexchange/codexchange/plugin"
	"github.com/codexchange/codexchange/plugin/channel"
	"github.com/codexchange/codexchange/plugin/remote"
)

const (
	// scrapeTimeout is how long a plugin may take to say what it has counted.
	scrapeTimeout = 2 * time.Second
	// maxScrapes is how many scrapes are answered at a time; more are refused.
	maxScrapes = 4
	// maxEvents is how many counts of its own a plugin may show, and maxEventName
	// how long their names may be, bytes.
	maxEvents    = 32
	maxEventName = 64
)

// metrics is what a daemon counts. It has a registry of its own, because a process
// may run several daemons, one after the other or in tests; what libp2p and boxo
// count of the whole process is in the default one. Both are shown.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	inFlight *prometheus.GaugeVec
}

func newMetrics() *metrics {
	countBoxo()
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "codexchange_http_requests_total", Help: "Requests answered.",
		}, []string{"server", "code", "method"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "codexchange_http_requests_in_flight", Help: "Requests under way.",
		}, []string{"server"}),
	}
	m.registry.MustRegister(m.requests, m.inFlight)
	return m
}

// countBoxo has boxo's counters kept in the default registry, those of Bitswap for one.
// They are made when what they count is, so it comes before; once in a process. A
// program that has chosen another place for them keeps it.
var countBoxo = sync.OnceFunc(func() { _ = metricsprometheus.Inject() })

// watch adds what the node of d counts. It must run until nobody scrapes any more.
func (m *metrics) watch(d *daemon) {
	m.registry.MustRegister(&collector{node: d.node, repo: d.repo, disk: &d.disk, log: d.log})
}

// count counts what h answers. Methods that HTTP does not know are counted as one.
func (m *metrics) count(server string, h http.Handler) http.Handler {
	return promhttp.InstrumentHandlerInFlight(m.inFlight.WithLabelValues(server),
		promhttp.InstrumentHandlerCounter(m.requests.MustCurryWith(prometheus.Labels{"server": server}), h))
}

// handler shows everything. What cannot be gathered is left out and logged.
func (m *metrics) handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(prometheus.Gatherers{prometheus.DefaultGatherer, m.registry}, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		EnableOpenMetrics:   true,
	})
}

// version is that of this program.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// desc describes a metric of the collector.
func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("codexchange_"+name, help, labels, nil)
}

var (
	buildInfo = desc("build_info", "1, with what the program was built from.", "version", "goversion")
	peers     = desc("peers", "Connected peers.")

	repoSize   = desc("repo_size_bytes", "What the repo takes on the disk.")
	repoBlocks = desc("repo_blocks_bytes", "What the blocks take on the disk; flatfs estimates it in large directories.")
	repoMax    = desc("repo_max_bytes", "What the repo shall take at most, Datastore.StorageMax.")
	repoFree   = desc("repo_free_bytes", "What the disk still has for this user.")
	diskFull   = desc("disk_full", "1 while blocks cannot be stored for want of room, and fetching stops.")

	heldBlocks  = desc("writebehind_blocks", "Fetched blocks in memory that are not written yet.")
	heldBytes   = desc("writebehind_bytes", "Memory that fetched blocks take until they are written and told.")
	heldFailing = desc("writebehind_failing", "1 while nothing can be written.")

	exchangeBlocks     = desc("exchange_blocks_received_total", "Blocks received, without duplicates; from 0 again when a plugin is restarted.", "exchange")
	exchangeDuplicates = desc("exchange_duplicate_blocks_received_total", "Blocks received that were here already.", "exchange")
	exchangeBytes      = desc("exchange_bytes_received_total", "Bytes of blocks received, duplicates included.", "exchange")

	pluginState      = desc("plugin_state", "1 for the state that the plugin is in, 0 for the others.", "plugin", "state")
	pluginSince      = desc("plugin_state_since_seconds", "When the plugin came into its state, as Unix time.", "plugin")
	pluginRestarts   = desc("plugin_restarts_total", "Processes that were started after the first.", "plugin")
	pluginCrashes    = desc("plugin_recent_crashes", "Crashes within the window after which a plugin is given up.", "plugin")
	pluginData       = desc("plugin_channel_bytes_total", "Bytes that crossed between host and plugin as data.", "plugin", "channel", "direction")
	pluginReferences = desc("plugin_channel_blocks_total", "Blocks that crossed as a reference.", "plugin", "channel", "direction")
	pluginFilled     = desc("plugin_filled_bytes_total", "Bytes of blocks that the host sent to peers where the plugin had put a reference.", "plugin")
	pluginStreams    = desc("plugin_streams", "Streams to peers that the plugin has open.", "plugin")
	pluginWaiting    = desc("plugin_inbound_streams_waiting", "Streams of peers that the plugin has not been told of.", "plugin")
	pluginTags       = desc("plugin_tags", "Tags and protections of peers that the plugin holds.", "plugin")
	pluginExpired    = desc("plugin_inbound_streams_expired_total", "Streams of peers that waited too long for the plugin.", "plugin")
	pluginRefused    = desc("plugin_streams_refused_total", "Streams beyond a limit.", "plugin")
	pluginIgnored    = desc("plugin_tags_ignored_total", "Tags and protections beyond the limit.", "plugin")
	pluginMissing    = desc("plugin_blocks_missing_total", "References to blocks that could not be filled.", "plugin")
	pluginSent       = desc("plugin_blocks_sent_total", "Blocks that the exchange in the plugin has sent.", "plugin")
	pluginSentBytes  = desc("plugin_bytes_sent_total", "Bytes of blocks that the exchange in the plugin has sent.", "plugin")
	pluginWants      = desc("plugin_wants", "What the exchange in the plugin asks for.", "plugin")
	pluginPeers      = desc("plugin_peers", "Peers that speak the protocol of the exchange in the plugin.", "plugin")
	pluginEvents     = desc("plugin_events_total", "What else the exchange in the plugin counts.", "plugin", "event")
	pluginCPU        = desc("plugin_cpu_seconds_total", "CPU time of the plugin's process.", "plugin")
	pluginMemory     = desc("plugin_memory_bytes", "Memory of the plugin's process.", "plugin")
)

// A collector looks how things are when it is asked.
type collector struct {
	node *host.Node
	repo *repo.Repo
	disk *disk
	log  *slog.Logger
}

// Describe tells nothing: which metrics there are depends on the plugins.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	out := sink{ch}
	out.gauge(buildInfo, 1, version(), runtime.Version())
	out.gauge(peers, float64(len(c.node.Peers())))

	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	if s, err := c.repo.Size(ctx); err != nil {
		c.log.Warn("the size of the repo is missing in the metrics", "err", err)
	} else {
		out.gauge(repoSize, float64(s.RepoSize))
		out.gauge(repoBlocks, float64(s.BlocksSize))
		out.gauge(repoMax, float64(s.StorageMax))
		out.gauge(repoFree, float64(s.Free))
	}
	out.gauge(diskFull, number(c.disk.full.Load()))

	held := c.node.Blockstore().Stats()
	out.gauge(heldBlocks, float64(held.Blocks))
	out.gauge(heldBytes, float64(held.Bytes))
	out.gauge(heldFailing, number(held.Err != nil))

	var asked sync.WaitGroup
	for _, x := range c.node.Exchanges() {
		asked.Go(func() {
			if p := x.Plugin(); p != nil {
				out.plugin(ctx, x.Name, p)
			} else if n, err := x.Counts(); err == nil {
				out.counts(x.Name, n.Blocks, n.Duplicates, n.Bytes)
			}
		})
	}
	asked.Wait()
}

// A sink takes metrics. Its methods may be called from any goroutine.
type sink struct{ ch chan<- prometheus.Metric }

func (s sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s sink) counter(d *prometheus.Desc, v float64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
}

func (s sink) counts(exchange string, blocks, duplicates, bytes uint64) {
	s.counter(exchangeBlocks, float64(blocks), exchange)
	s.counter(exchangeDuplicates, float64(duplicates), exchange)
	s.counter(exchangeBytes, float64(bytes), exchange)
}

func (s sink) plugin(ctx context.Context, name string, p *plugin.Plugin) {
	status := p.Status()
	for _, state := range plugin.States() {
		s.gauge(pluginState, number(status.State == state), name, state.String())
	}
	s.gauge(pluginSince, float64(status.Since.UnixMilli())/1e3, name)
	s.counter(pluginRestarts, float64(status.Restarts), name)
	s.gauge(pluginCrashes, float64(status.Crashes), name)

	crossed := p.Counters()
	for _, c := range []struct {
		channel string
		*channel.Counters
	}{{"streams", &crossed.Streams}, {"results", &crossed.Results}, {"calls", &crossed.Calls}} {
		s.counter(pluginData, float64(c.DataOut.Load()), name, c.channel, "to_plugin")
		s.counter(pluginData, float64(c.DataIn.Load()), name, c.channel, "from_plugin")
		s.counter(pluginReferences, float64(c.BlocksOut.Load()), name, c.channel, "to_plugin")
		s.counter(pluginReferences, float64(c.BlocksIn.Load()), name, c.channel, "from_plugin")
	}
	s.counter(pluginFilled, float64(crossed.Streams.Filled.Load()), name)

	lent := p.Lent()
	s.gauge(pluginStreams, float64(lent.Streams), name)
	s.gauge(pluginWaiting, float64(lent.InboundWaiting), name)
	s.gauge(pluginTags, float64(lent.Tags), name)
	s.counter(pluginExpired, float64(lent.InboundExpired), name)
	s.counter(pluginRefused, float64(lent.StreamsRefused), name)
	s.counter(pluginIgnored, float64(lent.TagsIgnored), name)
	s.counter(pluginMissing, float64(lent.BlocksMissing), name)

	// What follows is missing while the plugin does not answer, or does not count.
	n, err := p.Inspect(ctx)
	if err != nil {
		return
	}
	s.counts(name, n.BlocksReceived-min(n.DuplicateBlocks, n.BlocksReceived), n.DuplicateBlocks, n.BytesReceived)
	s.counter(pluginSent, float64(n.BlocksSent), name)
	s.counter(pluginSentBytes, float64(n.BytesSent), name)
	s.gauge(pluginWants, float64(n.Wants), name)
	s.gauge(pluginPeers, float64(n.Peers), name)
	s.counter(pluginCPU, n.CPU.Seconds(), name)
	s.gauge(pluginMemory, float64(n.Memory), name)
	for _, event := range events(n) {
		s.counter(pluginEvents, float64(n.More[event]), name, event)
	}
}

// events are the names of what a plugin counts, as far as they can be labels.
func events(s remote.Stat) []string {
	names := slices.Sorted(maps.Keys(s.More))
	names = slices.DeleteFunc(names, func(n string) bool {
		return len(n) > maxEventName || strings.ToValidUTF8(n, "") != n
	})
	return names[:min(len(names), maxEvents)]
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
