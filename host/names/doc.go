// Package names keeps and finds the signed records of IPNS names: what a name leads to,
// until when, and in which version (https://specs.ipfs.tech/ipns/ipns-record/).
//
// [Names] is a routing.ValueStore, on which boxo's gateway and namesys resolve paths
// of /ipns. It decides which record of a name is the best, how long it is not asked
// for again, and that none is believed that the key of the name has not signed. Whom
// to ask is left to package finding, domain names (DNSLink) to boxo.
//
// Records that others have signed are put and told on. A node makes none of its own:
// there is no publishing, and nothing is told again when a DHT has forgotten it.
//
// # Where records are
//
//   - Kept: in the datastore, below /names, by PutValue. They count until they expire,
//     and go when there is a newer one. A DHT has its own below /ipns, which it
//     removes after two days.
//   - Asked for: what a search has led to is the answer for a minute, or for as long
//     as the record says if that is less. Of 128 names at most.
//
// # Goroutines
//
//	Names.SearchValue  one per search that asks others; ends within 20 s, or with its
//	                   context; it closes the channel, by which its caller waits
package names
