// Package channel carries streams of bytes between a host process and a plugin
// process. It owns what crosses the boundary beside the control calls: the
// socket, the greeting that proves who is on it, and the records on it. It
// knows nothing of how the processes find each other, of libp2p, or of block
// exchanges: a host gives [Bridge] anything that looks like a [Stream].
//
// # A stream is records on a socket of its own
//
// Each stream has a unix-socket connection of its own. Raw bytes would not do:
// when a process is killed its sockets read as a clean end, and a cut frame
// would pass for a close. So each direction is a sequence of records, a kind
// (1 byte), a length (4 bytes, little-endian) and that many bytes:
//
//	kind            bytes                  meaning
//	1 data          1 to 262,144           bytes of the stream
//	2 block         size (4), CID          "put the block CID here"; to the host only
//	3 region        offset (8), length (4) bytes of the stream, in shared memory; to the plugin only
//	4 close-write   none                   the stream ends here, in good order
//	5 reset         code (4)               both directions end at once
//	6 credit        bytes (4)              so much more may be sent
//	7 close-read    none                   send no more; what comes is thrown away
//	128 to 255      0 to 262,144           skipped: room for later versions
//
// Anything else is a protocol error, answered with a reset of [CodeProtocol].
// A socket that ends before close-write is a reset for whoever reads, and so is
// one that ends inside a record. A socket that ends after close-write is closed
// in both directions. Region records need [CapRegions] from both sides, which
// offer it if they have memory ([Options].Inbound, Loans); without it they are protocol
// errors, and so is one of a range that is not within the memory.
//
// # Credit
//
// Each side says in the greeting how many bytes it is ready to hold (its
// window), and gives credit back as they are read. A data record costs its
// length; a block or region record costs [RefCost] whatever it names, which
// bounds how many are waiting (64 with the usual window) and not how much they
// name. A block record is paid back when the bytes are on their way, so a slow
// peer of the host slows the plugin down. A side that sends more than its
// credit breaks the protocol, so the memory of a stream is bounded by the window
// even if the other side misbehaves.
//
// # Shared memory
//
// Copies through the kernel are most of what a byte of a stream costs. So a
// host that has memory which its plugin reads (package memory) has [Bridge] read
// large pieces from the peer into it, and sends region records. [Conn.Read] copies from
// there, and notices no difference; [Conn.ReadLent] leaves the bytes where they are. The
// memory is cut into slots of 64 KiB, which all streams of a plugin share. What is less
// than 16 KiB of a quiet stream goes inline, and so does everything for which there is no
// slot: nobody waits for one. A stream gets fewer the more others have, and at most
// half of all are waiting for peers to say something.
//
// A region is lent from when its record is sent until the plugin gives it back by name.
// [Loans] collect what is given back; their owner tells the host, which calls
// [Listener.Returned]. A region is given back when everybody in the plugin has let go of it
// ([Region.Free]), be it long after its stream has ended. So that none is forgotten which
// was on its way, the plugin reads the socket of a stream that it has ended until the host
// ends its side, for StallTimeout at the most; Conn.Done is closed then. A plugin that gives nothing back keeps
// the memory from its own streams until the Listener closes, and from nobody else.
//
// A stream flows when 256 KiB have come without a pause. Then slots are filled to the end
// and sent several at a time, but no later than 0.8 ms after the first byte.
//
// # A process that hangs
//
// Each end always empties its socket, whether or not anybody reads. So a write
// to the socket that does not end within [StallTimeout] means that the other
// process hangs, and resets the stream.
//
// # Goroutines
//
//	Listener.accept     one per Listener; ends with Close, which waits for it
//	Listener.serve      one per connection: greets, then is that Conn's Conn.run;
//	                    ends with the socket; Listener.Close waits for it
//	Conn.run            on the dialling side, one per Conn; ends with the socket; Conn.Done tells
//	abandon             one for a Dial that was given up between hello and answer; ends when the
//	                    host has ended the stream, or after the times for a handshake and a stall
//	Conn.absent         a timer's, now and then; wakes Conn.run, and ends
//	Conn.linger         a timer's, once; closes the socket of a host that does not, and ends
//	Bridge              two per call, and a timer's now and then, waited for before it returns
//
// A reader takes its bytes from the socket itself; Conn.run does it for everybody
// else while there is no reader (see Conn.lead).
//
// # Where to look
//
// record.go and hello.go are the formats; conn.go is the stream as its user
// sees it, receive.go and send.go the two halves behind it, queue.go what waits
// to be read; listen.go and dial.go greet; bridge.go joins a stream to a Conn, intake.go
// is what it reads; slots.go is the memory, on both sides.
package channel
