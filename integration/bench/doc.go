// Command bench measures the Codex block exchange beside Bitswap, and both
// beside what is possible at all.
//
//	go run ./integration/bench -rounds 5 bulk latency > figures.jsonl
//	go run ./integration/bench summary figures.jsonl
//
// It owns how figures are made: every node is a process of its own, every
// exchange runs over the same libp2p host and the same store, and every round
// runs each case once, so that what is compared was measured side by side. It
// decides nothing about what is good; docs/benchmarks.md does, with figures.
//
// # Suites
//
//	stream   one libp2p stream, the most that any exchange over it can reach
//	bulk     a list of blocks from one seeder, in memory and in flatfs
//	latency  one block after another
//	dag      a UnixFS file: FetchGraph, the reader, and a plain list of its size
//	multi    four seeders and one leecher; one seeder and four leechers
//	memory   1 GiB into flatfs: what the leecher keeps resident
//	rtt      links of 20 and 100 ms, emulated; needs to be allowed to make network
//	         namespaces and TUN devices, and is skipped, with the reason, if not
//
// # Exchanges
//
// Table exchanges has them. "blockexc" is package exchange over adapter/p2p and
// adapter/blocks; "blockexc-plugin" is the same in a process of its own, which
// counts as the node's. "bitswap" is adapter/bitswap: boxo's own defaults, but for a
// window of 512 wants a session and 2 s of patience before silence counts as
// "don't have". "floor" is no exchange to use: one stream, the whole list down
// it, the blocks back in order. It is what remains of a transfer without any
// want, choice or bookkeeping. "boxo" is boxo's Bitswap without our adapter, with the
// window in the caller, and runs only if it is asked for by name: it shows what
// the adapter costs.
//
// Hosts have go-libp2p's defaults, but only TCP and Noise (unless the case says
// otherwise), and no limits on streams: under the usual ones Bitswap loses
// blocks. flatfs is laid out as Kubo does and not synced, as is Kubo's default.
// A leecher fetches through a session of a blockservice, as every IPFS node
// does: each block is verified, stored and announced.
//
// # Figures
//
// A run is one JSON object a line on standard output, of type record; the unit
// is in the name of each figure, MB is 10^6 bytes and MiB 2^20. CPU is user and
// system time of the processes over the measured stretch alone; resident memory
// is the peak over it. cores_others is how many cores were busy meanwhile with
// something else: the kernel's own work, such as writing back files, and other
// programs, which make a run doubtful. On systems other than Linux, CPU and
// memory are left out.
//
// # Node protocol
//
// "bench node" is a peer. It reads one JSON request a line from standard input
// and writes one JSON answer to each, in order, to standard output; it ends when
// standard input does. Types request and answer have the fields, and table ops the
// operations.
package main
