// Package lease owns addresses and their holders: reservations, and a dynamic pool per subnet.
//
// A Table keeps everything in memory and looks everything up in constant time; a Backend makes it
// durable. An offer is a promise for a minute and lives in memory only. A lease is written before it is
// granted, so that no two bootds, one after the other, give one address to two machines.
//
// Four rules keep the pool honest where anyone can forge a MAC:
//
//   - A reserved or unavailable address is not granted to any other MAC.
//   - An address that was leased to a registered MAC is kept for that MAC while it is registered, also
//     after the lease ran out. RELEASE and DECLINE carry no proof of who sent them, so for a registered
//     MAC they change nothing, and neither does a REQUEST for another address.
//   - Unregistered MACs together hold at most Subnet.Limit addresses, each for at most Subnet.ShortLease.
//   - At most a quarter of a pool can be in quarantine: a client that declines every offer cannot exhaust
//     the pool.
package lease
