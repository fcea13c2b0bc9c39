// Package dhcp is the DHCPv4 boot server. It owns the sockets on UDP ports 67 and 4011, the packets
// and the protocol: whom to answer, in which form, and to which address. What to answer (addresses,
// boot files, refusals) it asks of a Decider; it knows nothing of storage.
//
// A packet takes one path:
//
//	socket ─▶ bounded queue ─▶ worker: parse → Client ─▶ Decider ─▶ reply ─▶ socket
//
// Replies go where RFC 2131 §4.1 sends them: to the relay's port 67; else to ciaddr; else, if the
// client asked for it, to everybody; else to the client's hardware address alone. A client without an
// address answers no ARP, so that last form leaves through an AF_PACKET socket. Broadcasting instead
// would work as well, but then 500 machines that boot together wake each other up with every reply.
// Where the process may not open an AF_PACKET socket, replies are broadcast.
//
// On the same interfaces it spares iPXE a long wait for an IPv6 router; see advertise.go.
//
// Boot firmware reads the same options in four different ways; which form is used for whom, and why, is
// written at Style and Bootfile.
package dhcp
