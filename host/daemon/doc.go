// Package daemon is what runs beside a node in a process that stays: the RPC API,
// the gateway, metrics and what else operators look at, from [Run] to the end of its
// context. It decides who may ask the node what over HTTP, how long strangers are
// waited for, and in which order everything ends. What the commands do is left to
// package commands, what the gateway answers to boxo, and where things are kept
// to package repo.
//
// # The API
//
// On each of Addresses.API, which may be unix sockets:
//
//	POST /api/v0/...                the commands
//	GET  /debug/metrics/prometheus  metrics of this node, of libp2p and of boxo
//	     /debug/pprof/...           profiles, as net/http/pprof
//	POST /debug/pprof-mutex/?fraction=N, /debug/pprof-block/?rate=N
//	GET  /healthz                   200 while the process answers
//	GET  /readyz                    200 while the node does all that it is to do, else
//	                                503 and what is missing, a plugin that is down too
//
// A request has to pass three checks, in this order:
//
// Host (all of the API): localhost, a loopback address, the address that the server
// listens on, or the host of an origin in API.HTTPHeaders.Access-Control-Allow-Origin.
// A server on all addresses of the machine answers to every address, but to no name
// that is not configured. So a web page whose name is made to point here finds
// nobody (DNS rebinding). On a unix socket, and if every origin is allowed ("*"),
// every name will do.
//
// Origin (all of the API): none, one of this machine at the API's port, or one that
// is configured. Commands also look at Referer and User-Agent, as Kubo's do.
//
// Authorization (all but /healthz and /readyz), if API.Authorizations has any: one of
// them, whose AllowedPaths have the path or one above it; /api/v0/version is open to
// each. Unlike Kubo's they guard /debug too: who shall read metrics alone is given
// ["/debug/metrics"].
//
// # The gateway
//
// boxo's, on each of Addresses.Gateway: trustless (raw, car), and deserialised unless
// Gateway.DeserializedResponses is false, with boxo's limits for requests at a time,
// for the retrieval of a piece, and for a request. localhost is a subdomain gateway.
// With Gateway.NoFetch it answers from the local store alone. A CAR that cannot be sent
// to its end ends the connection. Paths of /ipns and records of names are answered from
// the node's Names, package names; a name that nobody knows is 404. DNSLink is boxo's.
//
// # Bounds
//
//	header of a request     1 MiB, 10 s
//	body of a request       streamed to the command, in any length; 2 min without a
//	                        byte end it
//	response                64 KiB in 2 min at least, or the connection is closed
//	connections             1,024 to each API; Gateway.MaxConcurrentRequests and
//	                        1,024 to each gateway, so that those above the limit are
//	                        told (429); more wait in the system's queue
//	idle connections        2 min
//	scrapes of metrics      4 at a time, 2 s for the plugins to answer
//
// # The end
//
// When its context ends, a command asks for it, or a server fails, a daemon tells
// the service manager, removes the api file, and takes no more requests. Commands that
// would go on for ever end at once. Whatever else is under way has 5 s to end by itself,
// and 10 s more after its context has ended. Then the node is closed, and the repo.
//
// # The service manager
//
// With $NOTIFY_SOCKET set, systemd hears READY=1, STOPPING=1, and, if it wants to
// (WatchdogSec=), WATCHDOG=1 as long as the store answers.
//
// # A full disk
//
// Serving goes on. It is logged when the disk becomes full and when it has room again:
// by what the write-behind store says, by commands that end for want of room, and by
// how much is free. Commands that fail meanwhile say so too.
//
// # Garbage
//
// With Options.EnableGC it is collected when the repo takes more than its watermark,
// or the disk is full; that is looked at each Datastore.GCPeriod. Commands that add and
// pin wait meanwhile. What is fetched without a pin may go before it has been read.
//
// # Metrics
//
// Their names begin with codexchange_; metrics.go lists them. Those of a plugin have
// its name as a label. The ones that libp2p and boxo, Bitswap too, keep in prometheus'
// default registry are shown beside them.
//
// # Traces
//
// A request to a server is a trace of OpenTelemetry, or a part of the one that its
// headers name; what is done for it, in plugins too, is a part of it. They are sent
// where the OTEL_* environment says, by package plugin/tracing.
//
// # Goroutines
//
//	server.run         one per server; ends with server.stop, which waits for it
//	server.stop        one per server when the daemon ends; waited for
//	net/http           one or two per connection; requests are waited for, as above
//	boxo's gateway     one per request, for its time-out; ends with it
//	daemon.beat        one: disk and watchdog; ends with the daemon, which waits
//	daemon.collect     one with Options.EnableGC; ends with the daemon, which waits
//	collector.Collect  one per exchange and scrape; waited for
//	OpenTelemetry      one per exporter, if there are any; ends with startTracing's end
package daemon
