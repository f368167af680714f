// Command bench measures the Codex block exchange beside Bitswap, and both
// beside what is possible at all.
//
//	go run ./integration/bench all > figures.jsonl
//	go run ./integration/bench summary -targets figures.jsonl
//
// It owns how figures are made: every node is a process of its own, every
// exchange runs over the same libp2p host and the same store, and every round
// runs each case once, so that what is compared was measured side by side. Table
// targets has what is asked of our exchange, and which of that are gates; what the
// figures mean is for docs/benchmarks.md to say.
//
// # Suites
//
//	stream   one libp2p stream, the most that any exchange over it can reach; TCP
//	bulk     a list of blocks from one seeder, in memory and in flatfs
//	latency  one block after another
//	dag      a UnixFS file: FetchGraph, the reader, and a plain list of its size
//	multi    four seeders and one leecher; one seeder and four leechers
//	memory   1 GiB into flatfs: what the leecher keeps resident
//	large    100,000 blocks of 64 KiB in one request, and windowed by the caller; the
//	         seeder makes them when they are read, and the leecher forgets them
//	rtt      links of 20 and 100 ms, emulated; needs to be allowed to make network
//	         namespaces and TUN devices, and is skipped, with the reason, if not
//	idle     1,000 peers, with 1,000 wants each and with none, while nothing happens:
//	         each is a libp2p host with a connection and a stream, on which it has
//	         sent one list of want-haves that no other peer sends and that nobody can
//	         serve; all are in one process beside that of the node
//	get      daemons and their commands: host get beside Kubo's ipfs get. Kubo is what
//	         CODEXCHANGE_KUBO names, or bin/ipfs of this module, or is skipped
//
// "gates" is the cases, of all these, with a target that must hold, and what they
// are compared with.
//
// Single steps are measured by Go benchmarks, which are where the steps are:
// messages in exchange/wire/blockexc, decisions in exchange/internal/engine
// (BenchmarkStep), verification in exchange and exchange/merkle, the boundary to a
// plugin in plugin/channel and plugin/remote, writing in host/writebehind, and a
// transfer in one process, to profile, in integration.
//
// # Exchanges
//
// Table exchanges has them. "blockexc-inprocess" is package exchange over
// adapter/p2p and adapter/blocks; "blockexc" is the same as a plugin, as nodes run it
// unless they are told otherwise: a process of its own, which counts as the node's.
// "bitswap" is adapter/bitswap: boxo's own defaults, but for a window of 512 wants a
// session and 2 s of patience before silence counts as "don't have". "floor" is no
// exchange to use: one stream, the whole list down it, the blocks back in order. It
// is what remains of a transfer without any want, choice or bookkeeping. "boxo" is
// boxo's Bitswap without our adapter, with the window in the caller, and runs only
// if it is asked for by name: it shows what the adapter costs, and, in suite large,
// what becomes of a request that nobody windows.
//
// Hosts have go-libp2p's defaults, but only TCP and Noise (unless the case says
// otherwise), and no limits on streams and connections: under the usual ones Bitswap
// loses blocks. flatfs is laid out as Kubo does and not synced, as is Kubo's default.
// A leecher fetches through a session of a blockservice, as every IPFS node
// does: each block is verified, stored and announced.
//
// # Figures
//
// A run is one JSON object a line on standard output, of type record; the unit
// is in the name of each figure, MB is 10^6 bytes and MiB 2^20. CPU is user and
// system time of the processes over the measured stretch alone; resident memory
// is the peak over it. Both are sums over a node and its plugin, in which memory that
// they share counts twice. cores_others is how many cores were busy meanwhile with
// something else: the kernel's own work, such as writing back files, and other
// programs, which make a run doubtful. On systems other than Linux, CPU and
// memory are left out.
//
// What a system does with files and memory that runs before have freed would be part of
// a run in flatfs, and varies: a virtual machine's pages come back from its host at 440
// MB/s where those at hand are filled at 5,000, and ext4 without a journal passes over the
// inodes of removed files. So leechers' files are emptied, and removed at the end, and as
// many bytes as a run will write are written and taken out before it (empty, makeRoom).
//
// Data sets, numbers of peers and the time of suite idle scale with -mib; targets are
// for 512. One operation of a node may take 3 minutes and a run 6; beyond that it has
// failed.
//
// # Node protocol
//
// "bench node" is a peer. It reads one JSON request a line from standard input
// and writes one JSON answer to each, in order, to standard output; it ends when
// standard input does. Types request and answer have the fields, and table ops the
// operations.
//
// # Goroutines
//
// The command is one goroutine, with these beside it: os/exec's, which read what a
// daemon says and end with it; one for each leecher of a run, which waits for its
// answer; and those of a link, which its close waits for. In a node there are, beside
// the exchange's: windowed's, which end with the request; floor's, which end with
// their streams; those that make the peers of a crowd, which the operation waits for;
// and one that accepts TCP connections, which ends with the node.
package main
