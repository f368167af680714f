// Package commands is what a person, a script or an RPC client can ask of a node.
// Each command is defined once, with go-ipfs-cmds: [Main] runs it for a command
// line, and a daemon serves [Root] under /api/v0. Names, flags, output and the
// fields of the JSON follow Kubo's where Kubo has the command, so that `ipfs
// --api` and its RPC clients can use this node.
//
// # Where a command runs
//
// A command line first looks for a daemon: --api, else the api file of the repo. If
// there is one, the command runs there, and this process prints, and tells a person at a
// terminal which block is waited for (watch.go). Else it runs here, over a node without a
// network, or the part of the repo that it needs, which is opened for it and closed
// after ([Env]); a command that needs peers or a running plugin says instead that no
// daemon runs. Commands that concern only this process, as init and completion,
// always run here.
//
// # Exit codes
//
// 0 if the command did what it should, 1 if it failed or the command line is wrong
// (as with ipfs; the usage goes to stderr then), 130 if it was interrupted.
//
// # Goroutines
//
//	Main          one that runs the command, so that an interrupt ends the process
//	              even while the command hangs in a read that cannot be stopped;
//	              waited for, but after an interrupt no longer than a second
//	emitStream    one that writes an archive, a CAR or profiles; waited for
//	pin add       one that pins, while its progress is reported; waited for
//	fetches       one for each request for several blocks; ends with the request, when
//	              all have come or its context has ended
//	patient       one that watches what a command at a terminal waits for; waited for
//	query         one that asks the routing, while what it tells is emitted; waited for
//
// # Where to look
//
// root.go has the tree and the options of all commands, env.go what a command is
// given, cli.go the decision where it runs, read.go how paths and blocks are read,
// search.go what peers are asked for meanwhile, and walk.go how DAGs are read.
// Every other file is a command or a family of them, by its name.
package commands
