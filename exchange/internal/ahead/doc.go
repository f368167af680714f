// Package ahead decides what a session fetches before its caller asks for it.
//
// [Decode] reads the links of a block. A [Plan] is told which blocks of a DAG are
// asked for, which nodes have come and what has been fetched, and says what to
// fetch next. It is plain data, as the engine is: it starts nothing, waits for
// nothing and reads no clock. It does not hold blocks either; package exchange
// (ahead.go) does, asks the local store and makes the requests.
//
// # Where a walker goes
//
// A walker fetches a node, finds links in it and asks for what they lead to: a
// reader of a file depth first, ten at a time, FetchGraph breadth first, with 32
// requests at a time. Both go through the links of one node from left to right. So
// a Plan keeps the nodes it knows as frames, and in each the place up to which
// links were asked for. What comes next is the rest of the frame in which the
// walker asked last, with all that is below its links, and then the rest of the
// frame above it. Places are found by CID; a request for something that no known
// node links to says nothing.
//
// In a node whose links have names, the entries of a directory or the fields of a
// map, one request proves little, for it may be a path that is looked up. There
// the second in order counts, and only links of the kinds that were asked for are
// followed: who lists a directory opens its shards, and maybe its nodes, but no
// raw file.
//
// # The window
//
// Guesses, those that are under way and those that have come and were not asked
// for yet, take at most a window of bytes. It begins with 256 KiB, and grows by the
// size of each block that is asked for where it was expected, so that it doubles in
// each round, up to the limit. Half of it is for frames in which nothing was asked
// for yet, unless the last one turned out to be the right one.
//
// Guesses are dropped, and the window is small again, when the walker jumps in their
// frame, or has left it: after 48 requests elsewhere; more, if the frame is nearly
// done, because some of many concurrent requests come very late; and more than a
// thousand, if nothing in it was asked for yet, for those who go breadth first come
// later. Each time in a row the small window is half as large. Then only guesses that are used make the window grow, until more have been
// used than were wasted. So what a walker leaves behind is at most 256 KiB and as much
// as it had asked for in order.
//
// # Hostile DAGs
//
// Sizes that a node states only count until the block has come; a block for which
// there is no room is thrown away, and not guessed again, and if it was taken for less
// than half of what it is, all guesses under way are given up. Blocks of more than 2 MiB
// are not decoded. Links that no block can be fetched by are not kept. At most 16,384 links are known, or those of one block; the frame
// known longest is forgotten. A frame is followed upwards 64 levels at most, and a
// frame whose last link was taken is left out of that, so that a chain costs
// nothing. A call of [Plan.Next] looks at 4,096 links at most.
package ahead
