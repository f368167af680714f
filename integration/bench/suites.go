package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A suite is cases that are compared with each other.
type suite struct {
	name, about string
	cases       func(*bench) []benchCase
	// possible says why the suite cannot run here; nil: it always can.
	possible func(context.Context) error
	// anchor names the case, of the same round, that the speed of another is given
	// as a part of: the same exchange's, or that of no exchange. "" is none.
	anchor   func(name string) (anchor string, bare bool)
	anchored string // what that is called
}

var suites = []suite{
	{name: "stream", about: "one libp2p stream over each transport, and bare TCP", cases: streamCases, anchor: streamAnchor, anchored: "stream"},
	{name: "bulk", about: "a list of blocks from one seeder", cases: bulkCases, anchor: streamAnchor, anchored: "stream"},
	{name: "latency", about: "one block after another", cases: latencyCases},
	{name: "dag", about: "a UnixFS file", cases: dagCases, anchor: dagAnchor, anchored: "list"},
	{name: "multi", about: "several seeders, several leechers", cases: multiCases, anchor: multiAnchor, anchored: "1to1"},
	{name: "memory", about: "twice the bulk data into flatfs: resident memory", cases: memoryCases},
	{name: "large", about: "a request for 100,000 blocks, which are not kept", cases: largeCases, anchor: largeAnchor, anchored: "windowed"},
	{name: "rtt", about: "links of 20 and 100 ms", cases: rttCases, possible: linkPossible, anchor: rttAnchor, anchored: "tcp"},
	{name: "idle", about: "1,000 peers, each with 1,000 wants, while nothing happens", cases: idleCases},
	{name: "get", about: "whole nodes: host get beside Kubo's ipfs get", cases: getCases},
}

func suiteByName(name string) (suite, bool) {
	i := slices.IndexFunc(suites, func(s suite) bool { return s.name == name })
	if i < 0 {
		return suite{}, false
	}
	return suites[i], true
}

const (
	kib = 1 << 10
	mib = 1 << 20

	fullMiB = 512 // size of the bulk data set that everything else is for

	bareStream = "stream/tcp-noise" // the case that speeds of bulk are given as parts of
)

// bytes is the size of the bulk data set.
func (b *bench) bytes() int { return b.mib * mib }

// scaled is n for the full size of the data set.
func (b *bench) scaled(n int) int { return max(1, n*b.mib/fullMiB) }

// whole are the chosen exchanges that are more than a list down a stream.
func (b *bench) whole() []string {
	return slices.DeleteFunc(slices.Clone(b.exchanges), func(name string) bool {
		kind, err := exchangeByName(name)
		return err != nil || kind.bulkOnly
	})
}

func sizeName(n int) string {
	if n >= mib {
		return fmt.Sprintf("%dMiB", n/mib)
	}
	return fmt.Sprintf("%dKiB", n/kib)
}

func (b *bench) streamCase(transport string) benchCase {
	return benchCase{name: "stream/" + transport, run: func(ctx context.Context) (figures, error) {
		return b.stream(ctx, layout{transport: transport}, 2*int64(b.bytes()))
	}}
}

func (b *bench) fetchCase(name string, l layout, d dataset) benchCase {
	return benchCase{name: name, exchange: l.exchange, run: func(ctx context.Context) (figures, error) {
		return b.fetch(ctx, l, d, windowOf(l.exchange))
	}}
}

func streamCases(b *bench) []benchCase {
	return []benchCase{b.streamCase("tcp-noise"), b.streamCase("tcp-tls"), b.streamCase("quic"),
		{name: "tcp", run: func(ctx context.Context) (figures, error) { return b.tcp(ctx, layout{}, 8*int64(b.bytes())) }}}
}

func streamAnchor(string) (string, bool) { return bareStream, true }

func bulkCases(b *bench) []benchCase {
	list := []benchCase{b.streamCase("tcp-noise")}
	sets := []dataset{
		blocksOf(b.bytes(), 64*kib), blocksOf(b.bytes(), 256*kib), blocksOf(b.bytes(), mib),
		{b.scaled(20000), kib},
	}
	for _, d := range sets {
		for _, store := range []string{"mem", "flatfs"} {
			for _, x := range b.exchanges {
				list = append(list, b.fetchCase(sizeName(d.size)+"/"+store, layout{exchange: x, store: store}, d))
			}
		}
	}
	return list
}

func latencyCases(b *bench) (list []benchCase) {
	for _, way := range []string{"session", "each"} {
		for _, x := range b.exchanges {
			list = append(list, benchCase{name: way, exchange: x, run: func(ctx context.Context) (figures, error) {
				return b.latency(ctx, layout{exchange: x}, dataset{b.scaled(500), 64 * kib}, way)
			}})
		}
	}
	return list
}

func dagCases(b *bench) (list []benchCase) {
	bytes := b.bytes() / 2
	for _, chunk := range []int{256 * kib, mib} {
		for _, store := range []string{"mem", "flatfs"} {
			of := "/" + sizeName(chunk) + "/" + store
			for _, x := range b.whole() {
				l := layout{exchange: x, store: store}
				list = append(list, b.fetchCase("list"+of, l, blocksOf(bytes, chunk)))
				for _, way := range []string{"graph", "reader"} {
					list = append(list, benchCase{name: way + of, exchange: x, run: func(ctx context.Context) (figures, error) {
						return b.dag(ctx, l, chunk, int64(bytes), way)
					}})
				}
			}
		}
	}
	return list
}

func dagAnchor(name string) (string, bool) {
	_, rest, _ := strings.Cut(name, "/")
	return "list/" + rest, false
}

func multiCases(b *bench) (list []benchCase) {
	for _, size := range []int{64 * kib, 256 * kib} {
		for _, x := range b.whole() {
			of := "/" + sizeName(size)
			list = append(list,
				b.fetchCase("1to1"+of, layout{exchange: x}, blocksOf(b.bytes()/2, size)),
				b.fetchCase("4to1"+of, layout{exchange: x, seeders: 4}, blocksOf(b.bytes()/2, size)),
				b.fetchCase("1to4"+of, layout{exchange: x, leechers: 4}, blocksOf(b.bytes()/4, size)))
		}
	}
	return list
}

func multiAnchor(name string) (string, bool) {
	_, rest, _ := strings.Cut(name, "/")
	return "1to1/" + rest, false
}

func memoryCases(b *bench) (list []benchCase) {
	d := blocksOf(2*b.bytes(), 256*kib)
	for _, x := range b.exchanges {
		l := layout{exchange: x, store: "flatfs"}
		if windowOf(x) == 0 {
			list = append(list, b.fetchCase("all/256KiB", l, d))
		}
		list = append(list, benchCase{name: "windowed/256KiB", exchange: x, run: func(ctx context.Context) (figures, error) {
			return b.fetch(ctx, l, d, 512)
		}})
	}
	return list
}

// largeCases are one request for everything, and the same in parts so that 512
// blocks are wanted at a time. No node keeps a block, so that what the leecher has
// resident is what the exchange needs.
func largeCases(b *bench) (list []benchCase) {
	d := dataset{b.scaled(100_000), 64 * kib}
	for _, x := range b.exchanges {
		l := layout{exchange: x, store: "made", leecherStore: "discard"}
		for _, window := range []int{0, 512} {
			way := "all"
			if window > 0 {
				way = "windowed"
			}
			list = append(list, benchCase{name: way + "/64KiB", exchange: x, run: func(ctx context.Context) (figures, error) {
				return b.fetch(ctx, l, d, window)
			}})
		}
	}
	return list
}

func largeAnchor(name string) (string, bool) {
	_, rest, _ := strings.Cut(name, "/")
	return "windowed/" + rest, false
}

// idleCases leave out what no peer can ask. Peers without wants show what their
// connections take.
func idleCases(b *bench) (list []benchCase) {
	for _, x := range b.whole() {
		for _, wants := range []int{0, idleWants} {
			list = append(list, benchCase{name: fmt.Sprintf("wants/%d", wants), exchange: x, run: func(ctx context.Context) (figures, error) {
				return b.idle(ctx, x, b.scaled(idlePeers), wants, time.Duration(b.scaled(idleFor))*time.Second)
			}})
		}
	}
	return list
}

// getCases are Kubo, and our node with those of the exchanges that it knows.
func getCases(b *bench) (list []benchCase) {
	for _, x := range append([]string{kubo}, b.exchanges...) {
		if x != kubo && hostConfigs[x] == nil {
			continue
		}
		possible := func(ctx context.Context) error {
			_, err := b.softwareOf(ctx, x)
			return err
		}
		list = append(list,
			benchCase{name: "loopback/256KiB", exchange: x, possible: possible, run: func(ctx context.Context) (figures, error) {
				return b.get(ctx, x, layout{}, int64(b.bytes()))
			}},
			benchCase{name: "20ms/256KiB", exchange: x, run: func(ctx context.Context) (figures, error) {
				return b.overLink(ctx, 2, 20*time.Millisecond, 1000, layout{}, func(ctx context.Context, l layout) (figures, error) {
					return b.get(ctx, x, l, int64(b.bytes()))
				})
			}, possible: func(ctx context.Context) error {
				if err := possible(ctx); err != nil {
					return err
				}
				return linkPossible(ctx)
			}})
	}
	return list
}

// rttCases are transfers over links of 1 Gbit/s, and a crowd of nodes with
// 200 Mbit/s each way.
func rttCases(b *bench) (list []benchCase) {
	for _, v := range []struct {
		rtt   time.Duration
		bytes int
	}{
		{20 * time.Millisecond, b.bytes() / 2},
		{100 * time.Millisecond, b.bytes() / 8},
	} {
		add := func(name, x string, f func(context.Context, layout) (figures, error)) {
			list = append(list, benchCase{name: fmt.Sprintf("%dms/%s", v.rtt.Milliseconds(), name), exchange: x,
				run: func(ctx context.Context) (figures, error) {
					return b.overLink(ctx, 2, v.rtt, 1000, layout{exchange: x}, f)
				}})
		}
		add("tcp", "", func(ctx context.Context, l layout) (figures, error) { return b.tcp(ctx, l, int64(v.bytes)) })
		lone := dataset{b.scaled(50), 64 * kib}
		add("tcp-session", "", func(ctx context.Context, l layout) (figures, error) { return b.tcpPieces(ctx, l, lone) })
		add("stream", "", func(ctx context.Context, l layout) (figures, error) { return b.stream(ctx, l, int64(v.bytes)) })
		for _, size := range []int{64 * kib, 256 * kib, mib} {
			for _, x := range b.exchanges {
				add("list/"+sizeName(size), x, func(ctx context.Context, l layout) (figures, error) {
					return b.fetch(ctx, l, blocksOf(v.bytes, size), windowOf(x))
				})
			}
		}
		for _, x := range b.whole() {
			for _, way := range []string{"graph", "reader"} {
				add(way+"/256KiB", x, func(ctx context.Context, l layout) (figures, error) {
					return b.dag(ctx, l, 256*kib, int64(v.bytes), way)
				})
			}
			add("session", x, func(ctx context.Context, l layout) (figures, error) {
				return b.latency(ctx, l, lone, "session")
			})
		}
	}
	for _, size := range []int{64 * kib, 256 * kib} {
		for _, x := range b.whole() {
			const mbit = 200
			d := blocksOf(b.bytes()/8, size)
			list = append(list, benchCase{name: "1to4/" + sizeName(size), exchange: x, run: func(ctx context.Context) (figures, error) {
				f, err := b.overLink(ctx, 5, 20*time.Millisecond, mbit, layout{exchange: x, leechers: 4},
					func(ctx context.Context, l layout) (figures, error) { return b.fetch(ctx, l, d, windowOf(x)) })
				if err == nil {
					// The seeder has to send everything once.
					f["time_over_bound"] = f["wall_s"] / (float64(d.bytes()) * 8 / (mbit * 1e6))
				}
				return f, err
			}})
		}
	}
	return list
}

func rttAnchor(name string) (string, bool) {
	switch at, what, _ := strings.Cut(name, "/"); {
	case at == "1to4":
		return "", false
	case what == "session":
		return at + "/tcp-session", true
	default:
		return at + "/tcp", true
	}
}

// overLink runs f with nodes that are joined by an emulated link of so many
// Mbit/s each way.
func (b *bench) overLink(ctx context.Context, nodes int, rtt time.Duration, mbit float64, l layout,
	f func(context.Context, layout) (figures, error)) (figures, error) {
	k, err := newLink(ctx, nodes, rtt, mbit)
	if err != nil {
		return nil, err
	}
	defer k.close()
	l.link = k
	before := ownCPU()
	out, err := f(ctx, l)
	if err != nil {
		return nil, err
	}
	out["dropped_packets"], out["cpu_link_s"] = float64(k.dropped()), ownCPU()-before
	return out, nil
}
