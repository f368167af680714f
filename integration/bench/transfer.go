package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// A layout says which nodes take part in a run and how they are made.
type layout struct {
	seeders, leechers int    // 0: 1
	exchange          string // "": none
	store             string // of seeders; "": mem
	leecherStore      string // "": as seeders have it
	transport         string
	data              string // what the seeders hold; names their flatfs, which is kept
	link              *link  // nil: loopback
}

// A cluster is the nodes of a run, seeders first.
type cluster struct {
	seeders, leechers []*process
	all               []*process
	dir               string // of leechers' stores
}

// start starts the nodes of a layout; they do not know of each other yet.
func (b *bench) start(ctx context.Context, l layout) (_ *cluster, err error) {
	l.seeders, l.leechers = max(1, l.seeders), max(1, l.leechers)
	if l.store == "" {
		l.store = "mem"
	}
	c := &cluster{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if c.dir, err = os.MkdirTemp(b.dir, "run-"); err != nil {
		return nil, err
	}
	b.emptied = append(b.emptied, c.dir)
	for i := range l.seeders + l.leechers {
		role, store, dir := fmt.Sprintf("seeder%d", i), l.store, filepath.Join(b.dir, fmt.Sprintf("seeder%d-%s", i, l.data))
		if i >= l.seeders {
			role = fmt.Sprintf("leecher%d", i-l.seeders)
			dir = filepath.Join(c.dir, role)
			if l.leecherStore != "" {
				store = l.leecherStore
			}
		}
		netns, ip := l.link.place(i)
		p, err := b.spawn(ctx, role, netns)
		if err != nil {
			return nil, err
		}
		c.all = append(c.all, p)
		a, err := p.call(request{Op: "start", Exchange: l.exchange, Store: store, Dir: dir, Transport: l.transport, IP: ip})
		if err != nil {
			return nil, err
		}
		p.peer, p.addr, p.plugin = a.Peer, a.Addr, a.Plugin
	}
	c.seeders, c.leechers = c.all[:l.seeders], c.all[l.seeders:]
	return c, nil
}

// connect joins every leecher to all seeders and to all other leechers, and
// returns when everybody knows what the others speak.
func (c *cluster) connect() error {
	for i, p := range c.leechers {
		for _, other := range c.all[:len(c.seeders)+i] {
			if _, err := p.call(request{Op: "connect", Peer: other.peer, Addr: other.addr}); err != nil {
				return err
			}
			if _, err := other.call(request{Op: "await", Peer: p.peer}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *cluster) close() error {
	var list []error
	for _, p := range c.all {
		list = append(list, p.close())
	}
	if c.dir != "" {
		list = append(list, empty(c.dir))
	}
	return errors.Join(list...)
}

// empty takes the bytes out of all files in a directory, which the bench removes when
// it ends. ext4 without a journal does not use the inode of a file again for minutes
// after the file was removed: it passes over each such inode whenever it looks for one, so
// that a run would cost the more the more files the runs before it had removed.
func empty(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		return os.Truncate(path, 0)
	})
}

// makeRoom writes as many bytes to a file as a run will to flatfs, and takes them out
// again, so that each run finds memory for its files at hand. A virtual machine that gives
// free memory back to its host is given it anew at a tenth of the speed at which files
// are written otherwise; whether a run meets with that would be chance.
func makeRoom(dir string, bytes int64) error {
	f, err := os.CreateTemp(dir, "room-")
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, zeros{}, bytes)
	return errors.Join(err, f.Truncate(0), f.Close())
}

// zeros can be read without end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// A dataset is blocks of random bytes.
type dataset struct{ count, size int }

func (d dataset) bytes() int64 { return int64(d.count) * int64(d.size) }

// name tells datasets apart.
func (d dataset) name() string { return fmt.Sprintf("%dx%d", d.count, d.size) }

// blocksOf is bytes in blocks of size, at least one.
func blocksOf(bytes, size int) dataset { return dataset{max(1, bytes/size), size} }

// fill gives each seeder the data and returns the list of CIDs. What is in
// flatfs is kept for the next run, and so is the list of what is made.
func (b *bench) fill(c *cluster, store string, d dataset) (list string, err error) {
	for _, p := range c.seeders {
		list = filepath.Join(b.dir, fmt.Sprintf("%s-%s-%s.cids", d.name(), store, p.role))
		q := request{Op: "gen", Count: d.count, Size: d.size, Seed: uint64(d.size), File: list, Keep: store == "flatfs" || store == "made"}
		if _, err := p.call(q); err != nil {
			return "", err
		}
	}
	return list, nil
}

// windowOf is how many blocks the caller of an exchange may want at a time.
func windowOf(exchange string) int {
	kind, err := exchangeByName(exchange)
	if err != nil {
		return 0
	}
	return kind.window
}

// fetch has all leechers fetch all data at once. The time is that of the last.
func (b *bench) fetch(ctx context.Context, l layout, d dataset, window int) (f figures, err error) {
	l.data = d.name()
	c, err := b.start(ctx, l)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	list, err := b.fill(c, l.store, d)
	if err != nil {
		return nil, err
	}
	if err := c.connect(); err != nil {
		return nil, err
	}
	if l.store == "flatfs" && l.leecherStore == "" {
		if err := makeRoom(c.dir, d.bytes()*int64(len(c.leechers))); err != nil {
			return nil, err
		}
	}
	m, err := b.measure(c.all...)
	if err != nil {
		return nil, err
	}
	answers := make([]answer, len(c.leechers))
	failed := make([]error, len(c.leechers))
	var fetching sync.WaitGroup
	for i, p := range c.leechers {
		fetching.Go(func() { answers[i], failed[i] = p.call(request{Op: "fetch", File: list, Window: window}) })
	}
	fetching.Wait()
	u, err := m.end()
	if err := errors.Join(append(failed, err)...); err != nil {
		return nil, err
	}

	f = answers[0].Figures
	for _, a := range answers[1:] {
		if a.Figures["wall_s"] > f["wall_s"] {
			f = a.Figures
		}
	}
	u.add(f, len(c.seeders))
	f["cpu_s_per_GB"] = f["cpu_s"] / (float64(d.bytes()) / 1e9 * float64(len(c.leechers)))
	return f, c.addCounts(f, d.bytes())
}

// addCounts says what the exchanges moved, as parts of the data.
func (c *cluster) addCounts(f figures, bytes int64) error {
	sum := func(nodes []*process, name string) (part float64, err error) {
		for _, p := range nodes {
			a, err := p.call(request{Op: "counts"})
			if err != nil {
				return 0, err
			}
			part += a.Figures[name] / float64(bytes)
		}
		return part, nil
	}
	var e1, e2, e3 error
	f["sent_by_seeders"], e1 = sum(c.seeders, "sent_bytes")
	f["sent_by_leechers"], e2 = sum(c.leechers, "sent_bytes")
	f["duplicates"], e3 = sum(c.leechers, "duplicate_bytes")
	f["duplicates"] /= float64(len(c.leechers))
	return errors.Join(e1, e2, e3)
}

// between runs one operation on the leecher of a pair, after prepare.
func (b *bench) between(ctx context.Context, l layout, prepare func(*cluster) (request, error)) (f figures, err error) {
	c, err := b.start(ctx, l)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	q, err := prepare(c)
	if err != nil {
		return nil, err
	}
	if err := c.connect(); err != nil {
		return nil, err
	}
	m, err := b.measure(c.all...)
	if err != nil {
		return nil, err
	}
	a, err := c.leechers[0].call(q)
	if err != nil {
		return nil, err
	}
	u, err := m.end()
	if err != nil {
		return nil, err
	}
	u.add(a.Figures, len(c.seeders))
	if n, ok := a.Figures["bytes"]; ok {
		a.Figures["cpu_s_per_GB"] = a.Figures["cpu_s"] / (n / 1e9)
	}
	return a.Figures, nil
}

// stream reads bytes from one libp2p stream.
func (b *bench) stream(ctx context.Context, l layout, bytes int64) (figures, error) {
	return b.between(ctx, l, func(c *cluster) (request, error) {
		return request{Op: "stream", Peer: c.seeders[0].peer, Bytes: bytes}, nil
	})
}

// tcp reads bytes from one TCP connection.
func (b *bench) tcp(ctx context.Context, l layout, bytes int64) (figures, error) {
	return b.overTCP(ctx, l, request{Bytes: bytes})
}

// tcpPieces reads blocks from one TCP connection, as latency does: each is asked for
// when the one before has come.
func (b *bench) tcpPieces(ctx context.Context, l layout, d dataset) (figures, error) {
	return b.overTCP(ctx, l, request{Count: d.count, Size: d.size})
}

func (b *bench) overTCP(ctx context.Context, l layout, q request) (figures, error) {
	return b.between(ctx, l, func(c *cluster) (request, error) {
		_, ip := l.link.place(0)
		a, err := c.seeders[0].call(request{Op: "tcp-serve", IP: ip})
		q.Op, q.Addr = "tcp-receive", a.Addr
		return q, err
	})
}

// latency gets blocks one after the other.
func (b *bench) latency(ctx context.Context, l layout, d dataset, way string) (figures, error) {
	return b.between(ctx, l, func(c *cluster) (request, error) {
		list, err := b.fill(c, l.store, d)
		return request{Op: "latency", File: list, Way: way}, err
	})
}

// dag fetches a UnixFS file of so many bytes in chunks of a size.
func (b *bench) dag(ctx context.Context, l layout, chunk int, bytes int64, way string) (figures, error) {
	l.data = fmt.Sprintf("dag-%dx%d", bytes, chunk)
	return b.between(ctx, l, func(c *cluster) (request, error) {
		a, err := c.seeders[0].call(request{Op: "dag-add", Size: chunk, Bytes: bytes, Seed: 7})
		return request{Op: "dag-walk", Root: a.Root, Bytes: bytes, Way: way}, err
	})
}
