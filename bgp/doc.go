// Package bgp owns a host's BGP speaker: embedded GoBGP, as a client of its
// Zone's route reflectors or as one of them.
//
// The speaker is told what to be by a file that holds the bgp part of the
// HostSpec, and applies each change of it without dropping a session that need
// not drop. What it learns goes into the kernel (package fib). It shows its
// state on a unix socket.
//
// The default in both directions is to deny. GoBGP v3 accepts a policy on one
// ordinary neighbour and ignores it, so everything is global policy that tells
// neighbours apart (policy.go).
//
// A speaker that stops says nothing to its neighbours: they take the lost
// connection for a restart (RFC 4724), keep its routes, and so does the kernel.
// One that finds routes of its own in the kernel comes back as restarting.
package bgp
