// Package demo moves one file between two nodes on this machine, by each
// exchange in turn, and measures what that took.
//
// [Run] decides what makes the comparison fair: the same two identities, the
// same seeder's blocks on disk, a fetching node whose blockstore is empty, only
// the exchange under test running, both nodes started anew, and an order that
// alternates. It leaves to package host what a node is, and to its caller how
// progress and results are shown.
package demo
