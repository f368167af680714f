// Package integration holds what is tested across the whole of the project: the
// layers of its packages, and the exchange against peers that share no code with
// it. It has no code of its own.
package integration
