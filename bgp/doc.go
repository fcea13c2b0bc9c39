// Package bgp is a host's BGP speaker: embedded GoBGP, as a client of its
// Zone's route reflectors or as one of them.
//
// A file with the bgp part of the HostSpec configures the speaker, which
// applies each change of the file without dropping sessions unnecessarily. It
// installs learned routes in the kernel (package fib), and serves its state on
// a unix socket.
//
// The default in both directions is to deny. GoBGP v3 accepts a policy on a
// single ordinary neighbour and ignores it, so everything is global policy that
// distinguishes neighbours (policy.go).
//
// A speaker that stops sends its neighbours no notification: they take the lost
// connection for a restart (RFC 4724) and keep its routes, and so does the
// kernel. A speaker that finds its own routes in the kernel starts as
// restarting.
package bgp
