package names

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/routing/offline"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"
	kbucket "github.com/libp2p/go-libp2p-kbucket"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/routing"
)

const (
	searchWithin = 20 * time.Second // others are asked; less than what boxo's gateway waits for
	askedFor     = time.Minute      // at most, the result of a search is the answer
	askedNames   = 128              // of which the result of a search is remembered
)

var validator = record.NamespacedValidator{"ipns": ipns.Validator{}}

// Names are the records that a node has, and those that others have. Its methods may be
// called from any goroutine. Keys are routing keys, as [ipns.Name.RoutingKey] makes
// them; records are shared, not copied: nobody changes their bytes.
type Names struct {
	kept    routing.ValueStore
	network routing.ValueStore         // nil: nobody is asked
	asked   *lru.Cache[string, answer] // nil as network is
}

// An answer is what a search has led to.
type answer struct {
	record []byte
	until  time.Time
}

// New returns the records that are kept in data, and those that network finds. Nil asks
// and tells nobody.
func New(data ds.Batching, network routing.ValueStore) *Names {
	n := &Names{kept: offline.NewOfflineRouter(namespace.Wrap(data, ds.NewKey("/names")), validator), network: network}
	if network != nil {
		n.asked, _ = lru.New[string, answer](askedNames) // fails for other sizes alone
	}
	return n
}

// Kept are those of n that the node itself keeps.
func (n *Names) Kept() *Names { return &Names{kept: n.kept} }

// PutValue tells others of a record, and keeps it, unless a better one is known. It fails
// if there is nobody to tell; with routing.Offline the record is kept all the same.
func (n *Names) PutValue(ctx context.Context, key string, value []byte, options ...routing.Option) (err error) {
	name, offline, err := read(key, options)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("put record of %s: %w", name, err)
		}
	}()
	if len(value) > ipns.MaxRecordSize {
		return fmt.Errorf("%w: got %d bytes, want at most %d", ipns.ErrRecordSize, len(value), ipns.MaxRecordSize)
	}
	if _, err := ipns.UnmarshalRecord(value); err != nil {
		return fmt.Errorf("%w: got %d bytes that are none", ipns.ErrInvalidRecord, len(value))
	}
	if err := validator.Validate(key, value); err != nil {
		return fmt.Errorf("%w; want a record that the key of this name has signed and that has not expired", err)
	}
	best, err := n.here(ctx, key)
	if err != nil {
		return err
	}
	if !better(key, value, best) && !bytes.Equal(value, best) {
		return errOlder
	}
	told := errAlone
	if n.network != nil {
		told = n.network.PutValue(ctx, key, value, options...)
	}
	if told != nil && !(offline && Alone(told)) {
		return told
	}
	return n.kept.PutValue(ctx, key, value)
}

var (
	errOlder = errors.New("a newer record of the name is known here already")
	errAlone = errors.New("this node has no routing, so that nobody can be told")
)

// Alone reports whether an error of PutValue says that there is nobody to tell.
func Alone(err error) bool {
	return errors.Is(err, errAlone) || errors.Is(err, routing.ErrNotSupported) || errors.Is(err, kbucket.ErrLookupFailure)
}

// GetValue returns the best record that is found: kept here and, but for routing.Offline,
// with others. If there is none, the error is a routing.ErrNotFound.
func (n *Names) GetValue(ctx context.Context, key string, options ...routing.Option) ([]byte, error) {
	name, offline, err := read(key, options)
	if err != nil {
		return nil, err
	}
	found, err := n.SearchValue(ctx, key, options...)
	if err != nil {
		return nil, err
	}
	var best []byte
	for r := range found {
		best = r
	}
	switch {
	case best != nil:
		return best, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("record of %s: %w", name, context.Cause(ctx))
	case offline || n.network == nil:
		return nil, fmt.Errorf("record of %s: none is kept here, and nobody else is asked: %w", name, routing.ErrNotFound)
	}
	return nil, fmt.Errorf("record of %s: none is kept here, and nobody who was asked has one: %w", name, routing.ErrNotFound)
}

// SearchValue sends the record that is here, if there is one, and then each better one
// that others have, and closes the channel when they have been asked or ctx has ended.
// Whoever reads no more ends ctx.
func (n *Names) SearchValue(ctx context.Context, key string, options ...routing.Option) (<-chan []byte, error) {
	_, offline, err := read(key, options)
	if err != nil {
		return nil, err
	}
	best, err := n.here(ctx, key)
	if err != nil {
		return nil, err
	}
	out := make(chan []byte, 1)
	if best != nil {
		out <- best
	}
	if _, asked := n.answer(key); asked || offline || n.network == nil {
		close(out)
		return out, nil
	}
	asking, cancel := context.WithTimeout(ctx, searchWithin)
	found, err := n.network.SearchValue(asking, key, options...)
	if err != nil {
		cancel()
		close(out)
		if best == nil && !errors.Is(err, routing.ErrNotFound) {
			return nil, err
		}
		return out, nil // there is nobody to ask
	}
	go func() {
		defer cancel()
		defer close(out)
		for more := true; more; {
			var r []byte
			select {
			case r, more = <-found:
			case <-asking.Done():
				more = false
			}
			if !more || !better(key, r, best) {
				continue
			}
			best = r
			select {
			case out <- r:
			case <-asking.Done():
			}
		}
		if best != nil && ctx.Err() == nil {
			n.remember(key, best)
		}
	}()
	return out, nil
}

// here is the best record that is known without asking others, or nil.
func (n *Names) here(ctx context.Context, key string) ([]byte, error) {
	best, err := n.kept.GetValue(ctx, key)
	switch {
	case errors.Is(err, routing.ErrNotFound), errors.Is(err, ipns.ErrExpiredRecord):
		best = nil
	case err != nil:
		return nil, fmt.Errorf("read record: %w", err)
	}
	if r, ok := n.answer(key); ok && better(key, r, best) {
		best = r
	}
	return best, nil
}

func (n *Names) answer(key string) ([]byte, bool) {
	if n.asked == nil {
		return nil, false
	}
	a, ok := n.asked.Get(key)
	return a.record, ok && time.Now().Before(a.until)
}

// remember makes a valid record the answer, as long as it allows.
func (n *Names) remember(key string, value []byte) {
	keep := askedFor
	r, err := ipns.UnmarshalRecord(value)
	if err != nil {
		return
	}
	if ttl, err := r.TTL(); err == nil {
		keep = min(keep, ttl)
	}
	if expires, err := r.Validity(); err == nil {
		keep = min(keep, time.Until(expires))
	}
	n.asked.Add(key, answer{value, time.Now().Add(keep)})
}

// better reports whether a record is valid, and preferred to the best, which is nil or
// valid.
func better(key string, value, best []byte) bool {
	if validator.Validate(key, value) != nil {
		return false
	}
	if best == nil {
		return true
	}
	i, err := validator.Select(key, [][]byte{best, value})
	return err == nil && i == 1
}

// read says what is asked: of which name, and whether of this node alone.
func read(key string, options []routing.Option) (ipns.Name, bool, error) {
	name, err := ipns.NameFromRoutingKey([]byte(key))
	if err != nil {
		return name, false, fmt.Errorf("routing key %q: %w, want that of an IPNS name", key, err)
	}
	var o routing.Options
	err = o.Apply(options...)
	return name, o.Offline, err
}
