// Package writebehind is the store of a node between boxo's blockservice and the
// blockstore on disk. It decides when a fetched block is written and when the
// exchanges hear of it; what is fetched is left to them, and where bytes lie to
// the store behind.
//
// boxo's blockservice stores what it has fetched one Put at a time, and the fetch
// waits for each: on flatfs 0.3 to 1 ms, whatever the size. A [Store] holds such
// blocks for a short time, at most 16 MiB or 5 ms, and writes them in the
// background, several at once.
//
// # The way of a block
//
// Fetched: blockservice calls [Store.Put], which holds the block and returns, then
// NotifyNewBlocks of what [Store.Exchange] returned, which notes that the exchange
// wants to hear of it. Readers of the Store see the block from here on. A round
// (flush.go) writes it, it leaves memory, and only then the exchange is told. So a
// crash loses only blocks of which nobody was told.
//
// Added: blockservice calls the same Put for a block that a user adds, and skips
// a block that Has knows. [Store.Service] tells the two apart: it is a blockservice
// that fetches over the Store and adds over [Store.Adding], whose Put writes before it
// returns, and whose Has writes what is still held before it says yes. PutMany
// writes before it returns in both, as boxo never fetches with it. [Store.Flush]
// writes all that is held.
//
// Who records something about fetched blocks that shall outlive the process, as a
// pin or a leaf record, calls Flush between the fetch and the record. Otherwise a
// crash can leave a pin of blocks that are not there.
//
// "Written" is what the store behind means by it: with flatfs that does not sync,
// as Kubo's, a block outlives the process and not a power failure.
//
// Give the exchanges the store behind to serve from, not the Store: else a peer
// that asks for a block which is held would be told of it before it is written. It
// is served as soon as it has been, by the notification.
//
// # When writing fails
//
// What could not be written stays in memory, can be read, and is tried again after
// 50 ms, twice as long each time, at most a second. As long as there is memory, Put
// goes on. When it is full and nothing can be written, Put fails with the
// cause (errs.Storage, and syscall.ENOSPC if that is it): blockservice ends the
// fetch with it. Reading and serving go on, and fetching does when there is space.
// After 16 failures in a row a round leaves the rest to the next one, so a full
// disk costs 16 to 24 attempts a second. One bad block keeps no other from being written.
// Adding fails at once and keeps nothing.
//
// # Collecting garbage
//
// A Store goes into blockstore.NewGCBlockstore like any other. Adds under PinLock are
// written when they return. A collector takes GCLock, calls Flush, and then lists
// and deletes as usual. It goes on when Flush fails, as it does when the disk is
// full: AllKeysChan lists what is held, and DeleteBlock takes it away.
//
// # Bounds
//
// Memory: [Options].Bytes, of blocks that are not written or not told; whoever has
// more waits in Put, until its ctx ends. An exchange that hangs in NotifyNewBlocks so
// stops the fetching in the end, but no writing, adding or reading. Bytes are
// counted by the length of a block: who puts a small slice of a large buffer keeps
// the buffer. Calls of NotifyNewLeaves: 4,096 that wait for a write, and as many that
// wait for the exchange; the oldest are forgotten, with a warning.
//
// # Checking hashes
//
// The Store hashes nothing: blocks are verified when they arrive. To check what is
// read from the disk put blockstore.ValidatingBlockstore behind the Store; in front
// of it, it checks what is held too.
//
// # Goroutines
//
//	Store.run     one per Store; ends with Close, which waits for it
//	parallel      up to 8 per round and per PutMany, which wait for them
//	teller.run    one per Exchange; ends with its Close, which waits for it
//	AllKeysChan   one per call, besides that of the store behind; ends with the
//	              listing or its ctx
//
// # Locks
//
// One: Store.mu. It guards the Store and its tellers, and is not held while the
// store behind or an exchange is called.
//
// # Why Puts and not PutMany
//
// go-ds-flatfs has batches. Written side by side, 2 cores, ext4, medians of 15
// batches of up to 128 blocks, as multiples of one Put after the other
// (BenchmarkFlatfs):
//
//	                      4 KiB  64 KiB  256 KiB  1 MiB
//	no sync, 4 Puts       0.92   1.16    1.64     1.31
//	no sync, 8 Puts       0.91   1.12    1.64     1.33
//	no sync, 16 Puts      0.71   1.28    1.50     1.27
//	no sync, PutMany      0.56   1.12    1.16     1.15
//	sync, 4 Puts          3.1    4.4     2.1      1.9
//	sync, 8 Puts          3.3    6.6     2.6      1.4
//	sync, 16 Puts         3.6    6.4     2.1      1.9
//	sync, PutMany         1.9    2.5     1.9      1.4
//
// Quartiles are about 30 % to either side. So eight Puts at a time. They also say of
// each block whether it was written, and free its memory at once, and a Put
// that fails removes its temporary file, while a failed batch leaves its
// directory behind: on a full disk every attempt would take more of it.
package writebehind
