// Package repo keeps a node on disk: its configuration, its identity, its
// blocks and what else it has to remember. It decides what is where, who may
// use it, and whether what it reads makes sense; what the values mean to a
// running node is left to package host.
//
// # The directory
//
//	config      the configuration and the private key, JSON, mode 0600
//	blocks/     the blocks, a flatfs laid out as Kubo does, so that its tools can read it
//	datastore/  everything else, a leveldb
//	version     the version of this layout, "codexchange 1"
//	repo.lock   locked while a process uses the repo
//	holder      which process that is, and since when
//	api         where the daemon that uses the repo can be reached; only while it serves
//
// [Dir] says which directory a node uses, [Init] makes one, [ImportKubo] makes
// one from a Kubo repo, and [Open] opens it. A Kubo repo itself is never opened:
// the two would take each other's files for their own. The version file begins
// with a word for the same reason: Kubo would read a bare number as one of its
// own versions, and migrate.
//
// # One process at a time
//
// Opening a flatfs deletes what another opener is writing, so everybody who
// uses a repo holds its lock, offline commands that only read included; whoever
// comes second gets a [LockedError] that says where to turn instead. The lock
// goes away with its process, however that ends.
//
// # The configuration
//
// [Config] has Kubo's names where it means the same. Keys that this version does
// not know stay in the file, at any depth; values of the wrong type or out of
// range are reported together, in one [ConfigError]. The file is replaced as a
// whole, so that a crash leaves either the old one or the new one.
//
// # A full disk
//
// [DiskFull] recognises the error. A repo on a full disk can be opened: blocks are
// served and deleted as always, while the datastore may be read-only until the
// next time ([Repo.ReadOnly]).
//
// # Goroutines
//
// The package starts no goroutine. Those of flatfs and leveldb end with
// [Repo.Close].
//
// # Where to look
//
// repo.go is the opened repo, layout.go tells whose a directory is, lock.go and
// api.go are about other processes. config.go names the keys, check.go says which
// values they may have, codec.go and value.go read and write them, file.go
// changes them. init.go, profile.go and kubo.go make repos; disk.go asks how full
// the disk is.
package repo
