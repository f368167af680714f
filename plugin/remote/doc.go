// Package remote is an exchange that runs in another process: both sides of
// service Exchange of package pb. A [Client] in the host is an exchange of boxo,
// with leaves if the plugin has them; a [Server] in the plugin serves any
// exchange of boxo. The package knows nothing of how the processes find each
// other, how a plugin is started, or what it borrows from the host.
//
// # The way of a request
//
// GetBlocks makes a request in the Client. The request is the host's: it keeps
// what is still missing, so that it outlives the plugin. [Client.Run] serves one
// incarnation of the plugin. A sender tells it what is new, in Commands; a reader
// takes what comes back into the queue of the request; and whoever called takes it
// from there. Both are frames on one byte channel, and not messages of gRPC, which
// cost several times as much where each block needs one or two. The call Run says
// how long it goes on, and why it ended. When the
// incarnation ends the requests wait, and the next one is asked for what is
// still missing. So each block comes once, whatever happens to the plugin.
//
// In the plugin each request is a goroutine that calls the exchange and passes
// on what comes.
//
// # What is bounded
//
// A request has a window, [ClientOptions.Window] bytes. Credit for it is given to
// the plugin with the request, and again as the caller takes blocks. So the
// blocks of a caller that does not take them are at most the window and one
// block; the reader waits for nobody, and no caller slows another. A plugin that
// sends more than it has credit for has broken the contract.
//
// Blocks that the host's store has been given are told to the plugin by CID and
// size. At most [MaxPending] of them wait to be told; beyond that the oldest are
// forgotten, and the plugin is told how many. It does no harm: an exchange looks
// into the store when it is asked.
//
// What the sender has to do is a state, not a queue: requests that the plugin has
// not been told, numbers it has to forget, credit it is owed. A request that
// ends before it was sent leaves nothing.
//
// # Payload in memory
//
// Streams may bring bytes to the plugin in memory of the host's ([Instance].Inbound), and
// an exchange may leave blocks where they were brought (package lent). The head of such a
// result says where they are, in parts; small parts that are elsewhere follow the head. The
// host copies the block out of its own memory. What the plugin has done with goes
// back by name (Result.returned), behind the results that need it in the order of the
// frames, so nobody has to say that he has read something. It waits a millisecond for
// results to go with. See write.go.
//
// For other blocks the plugin may be offered memory of its own (Outbound). It is a ring,
// and belongs to who writes results in the plugin, and who reads them in the host.
// Payload of more than 16 KiB and up to a quarter of the ring is copied into it, and
// the head of the result says where; everything else follows its head as ever, and
// the order is that of the frames. The host believes nothing of what the head says
// but what it expects there, copies the payload out, and only then looks at it.
// Then it tells how far it has read (Command.passed): a count of the bytes of the
// ring that it has passed, each time that it is a quarter more. The plugin waits for
// room if there is none, after it has told of all that is there. See ring.go.
//
// # Blocks that the host has
//
// Whoever waits for a block gets it from [Client.NotifyNewBlocks] itself. The
// exchange in the plugin is told of the same block and may also deliver it; what
// it was given has no bytes until it asks for them, and what it delivers of such
// blocks crosses as a name (Result.held). As a rule the request does not wait for
// it any more, and it is thrown away. If it does, the block is read from the
// host's store ([ClientOptions.Held]), and if it has gone from there, the plugin
// is asked again for it.
//
// # Traces
//
// A request that somebody traces is a span of the Client, which crosses with it, and
// within that one of the Server, which the exchange finds in its context.
//
// # Goroutines
//
//	Client.Run        three: the caller's reads results; one sends, and closes the
//	                  results when Run ends; one calls the plugin and waits for its
//	                  answer. Run waits for both.
//	Client.GetBlocks  one for each request (GetLeaves too); ends with the channel;
//	                  Client.Close waits for it. GetBlock has none.
//	Server.Run        four: gRPC's waits for the end; one tells the exchange what
//	                  was stored, one writes results, one reads commands; Run waits
//	                  for all.
//	Server request    one for each request that the host has made, so as many as
//	                  the host chooses; ends with the request; Run waits for it.
//
// # Where to look
//
// client.go and request.go are the exchange as its callers see it; run.go is an
// incarnation; ask.go what can be asked beside blocks. server.go is the other
// side, serve.go its requests, write.go how results are written, jobs.go what the exchange is told was stored, stored.go
// the blocks of that. frame.go is the format of commands and results, ring.go the
// memory beside it.
package remote
