// Package porttest holds what the ports of package exchange promise: one suite
// for each of exchange.Network, Blocks, Leaves and Router. Every implementation
// runs them, the adapters over real things and the fakes that tests use in their
// place, so that what is true over a fake is true over the real thing.
//
// A suite checks only what exchange/ports.go says. What an implementation adds
// to that is tested beside it. Suites take a function that makes a fresh subject
// for each test and cleans it up with t.Cleanup.
package porttest
