// Package plugin runs an exchange in a process of its own, which borrows the
// identity, the connections and the blocks of the host that started it.
//
// The contract serves any boxo exchange.Interface. Who writes one calls [Main]
// or [Serve] and is given an [Env] that looks like a libp2p host, a blockstore
// and a router. Who has a node calls [Load] and gets a [Plugin], whose Exchange
// is used like any other.
//
// # Who has what
//
// The host keeps the private key, the connections, the store and the routing;
// none of them crosses. The plugin keeps what the exchange knows of peers and
// wants, in memory alone. So it can be killed at any time, and a new one goes on
// where it stopped: the host holds what has been asked for and asks again.
//
//	host                                        plugin
//	Plugin.Exchange: getters, sessions ──gRPC──▶ remote.Server ─▶ the exchange
//	   blocks ◀──────────────────────── results ──┘                 │
//	lend: libp2p host, store, routing ◀──gRPC── borrow: Env ◀────────┘
//	   libp2p streams ◀═══════════ byte channels ═══▶ network.Stream
//
// This isolates the host from crashes and mistakes of an exchange. It is not a
// sandbox: a process of the same user can read that user's files.
//
// # Parts
//
//	pb                   the contract: messages, services, errors
//	channel              byte channels: streams, results, and gRPC of the callback
//	lend, borrow         service Host, in the host and in the plugin
//	remote               service Exchange, on both sides
//	memory               memory that both processes have mapped, for what is fetched
//	heap                 how often a process, host or plugin, collects garbage
//	tracing, logging     where a process, host or plugin, sends its spans and logs
//	internal/subprocess  one process: start, death of either side, logs
//	internal/supervise   keeps one running: health, back-off, giving up
//	plugintest           the contract in one process, and the suite for authors
//
// # The life of a plugin
//
// A [Load] makes a private directory for sockets, starts the process, lends, and
// starts the exchange; when it returns, the exchange has registered its stream
// handlers, so a host should listen after it. A process that ends, hangs or
// breaks the contract is replaced, with back-off, and given up when it crashes
// too often; see [Policy]. Meanwhile the host's connections stay, streams of the
// old process are reset, those that peers open wait for the next, and requests
// wait too. When the host ends, in whatever way, so does the plugin.
//
// # Goroutines
//
// Those of a [Plugin] are in the packages that it is made of, and Close waits for
// them. Here are
//
//	here     two for each start of a plugin that runs in this process, see
//	         [Config.Here]: its gRPC server, which Kill waits for, and one that
//	         notices the end of its exchange and ends with it
//	Getter   one for each GetBlocks, and up to 16 that fetch; they end before its
//	         channel closes
//
// # Versions of the handshake
//
//	1  pb as of this package; records and greeting of channel version 1
//
// A plugin of another version is refused before it is given anything.
package plugin
