package nodetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/rpc"
	"os"
	"runtime"
	"slices"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/repo"
)

const (
	// Patience is how long a node may take for one thing that it is asked.
	Patience = 2 * time.Minute
	// connectWithin is how long it may take to connect.
	connectWithin = 5 * time.Second
)

// serveNode is a node over the repo in dir, until its input ends.
func serveNode(dir string, in io.ReadCloser, out io.WriteCloser) (err error) {
	r, err := repo.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	n, err := host.Open(context.Background(), r, false, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	s := rpc.NewServer()
	if err := s.RegisterName(serviceName, &service{ctx, n}); err != nil {
		return err
	}
	s.ServeConn(&pipe{in, out, cancel}) // waits for what is being answered
	return nil
}

// A pipe is what a process and the test talk through.
type pipe struct {
	io.ReadCloser
	out   io.WriteCloser
	ended context.CancelCauseFunc // told why no more can be read
}

func (p *pipe) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	if err != nil {
		p.ended(err)
	}
	return n, err
}

func (p *pipe) Write(b []byte) (int, error) { return p.out.Write(b) }

func (p *pipe) Close() error { return errors.Join(p.out.Close(), p.ReadCloser.Close()) }

const serviceName = "Node"

// A service is what a node process answers to, as package net/rpc wants it. Its
// methods may be called from any goroutine.
type service struct {
	ctx  context.Context // ends with the input of the process
	node *host.Node
}

type (
	// A Status is who a node is, whom it knows, and what it takes.
	Status struct {
		ID, Addr   string // the multiaddr ends in /p2p/ and the id
		Peers      []string
		Exchanges  []Exchange
		Goroutines int
		Files      int // open descriptors, where they can be counted
	}
	// An Exchange is one of a node.
	Exchange struct {
		Name string
		// Of the plugin that it runs in, if it does.
		State         string
		Pid, Restarts int
	}
	// Stored is what is in a blockstore.
	Stored struct {
		Keys []string // multihashes in hexadecimal digits, sorted
		Sum  string   // SHA-256 over each key and its block
	}
	// A File is to be added.
	File struct {
		Content []byte
		Chunk   int64
	}
)

func (n *service) Status(_ struct{}, s *Status) error {
	info := n.node.AddrInfo()
	s.ID, s.Addr = info.ID.String(), fmt.Sprintf("%s/p2p/%s", info.Addrs[0], info.ID)
	for _, p := range n.node.Peers() {
		s.Peers = append(s.Peers, p.String())
	}
	for _, x := range n.node.Exchanges() {
		e := Exchange{Name: x.Name}
		if p := x.Plugin(); p != nil {
			st := p.Status()
			e.State, e.Pid, e.Restarts = fmt.Sprint(st.State), st.Pid, st.Restarts
		}
		s.Exchanges = append(s.Exchanges, e)
	}
	s.Goroutines = runtime.NumGoroutine()
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		s.Files = len(open)
	}
	return nil
}

// exchange is the one of this name.
func (n *service) exchange(name string) (host.Running, error) {
	for _, x := range n.node.Exchanges() {
		if x.Name == name {
			return x, nil
		}
	}
	return host.Running{}, fmt.Errorf("no exchange %q", name)
}

// Received is how many blocks have come by an exchange.
func (n *service) Received(name string, blocks *uint64) error {
	x, err := n.exchange(name)
	if err != nil {
		return err
	}
	counts, err := x.Counts()
	*blocks = counts.Blocks
	return err
}

// Restart restarts the plugin of an exchange.
func (n *service) Restart(name string, _ *struct{}) error {
	x, err := n.exchange(name)
	if err != nil {
		return err
	}
	if x.Plugin() == nil {
		return fmt.Errorf("the exchange %q is no plugin", name)
	}
	x.Plugin().Restart()
	return nil
}

func (n *service) Connect(addr string, _ *struct{}) error {
	info, err := peer.AddrInfoFromString(addr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(n.ctx, connectWithin)
	defer cancel()
	return n.node.Connect(ctx, *info)
}

func (n *service) Disconnect(id string, _ *struct{}) error {
	p, err := peer.Decode(id)
	if err != nil {
		return err
	}
	return n.node.Host().Network().ClosePeer(p)
}

func (n *service) Add(f File, root *string) error {
	c, _, err := n.node.Add(n.ctx, bytes.NewReader(f.Content), f.Chunk)
	*root = c.String()
	return err
}

func (n *service) Fetch(root string, _ *struct{}) error {
	c, err := cid.Decode(root)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(n.ctx, Patience, fmt.Errorf("took longer than %v", Patience))
	defer cancel()
	return n.node.Fetch(ctx, c, nil)
}

// Sum is the SHA-256 of a file that is stored.
func (n *service) Sum(root string, sum *string) error {
	c, err := cid.Decode(root)
	if err != nil {
		return err
	}
	r, err := n.node.Open(n.ctx, c)
	if err != nil {
		return err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	*sum = hex.EncodeToString(h.Sum(nil))
	return nil
}

// Stored reads all blocks, each of which must fit its CID.
func (n *service) Stored(_ struct{}, s *Stored) error {
	keys, err := n.node.Blockstore().AllKeysChan(n.ctx)
	if err != nil {
		return err
	}
	var list []blocks.Block
	for c := range keys {
		b, err := n.node.Blockstore().Get(n.ctx, c)
		if err != nil {
			return err
		}
		if got, err := c.Prefix().Sum(b.RawData()); err != nil || !got.Equals(c) {
			return fmt.Errorf("block %s: its %d bytes are of %s, %v", c, len(b.RawData()), got, err)
		}
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b blocks.Block) int { return bytes.Compare(a.Cid().Hash(), b.Cid().Hash()) })
	h := sha256.New()
	for _, b := range list {
		s.Keys = append(s.Keys, b.Cid().Hash().HexString())
		h.Write(b.Cid().Hash())
		h.Write(b.RawData())
	}
	s.Sum = hex.EncodeToString(h.Sum(nil))
	return nil
}
