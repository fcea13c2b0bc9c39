package dhcp

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Decider says what clients are told. Its methods are called by many workers at once, each with a
// context that ends after Config.Timeout.
//
// ErrNotMine leaves a client to another server, without an answer. A *Refusal is sent as a NAK to a
// REQUEST and is silence to anything else. Every other error is logged, counted, and not answered:
// clients repeat themselves.
type Decider interface {
	// Offer answers a DISCOVER. An Answer without an address is a proxy offer: only a boot file, beside
	// the address that another server gives. Proxy offers go to clients that boot, and to no others.
	Offer(ctx context.Context, c Client) (Answer, error)
	// Request answers a REQUEST for addr. It must have made the lease durable when it returns.
	Request(ctx context.Context, c Client, addr netip.Addr) (Answer, error)
	// Inform answers a client that has an address (c.ClientAddr) and asks for all the rest. Address and
	// Lease of the Answer are ignored.
	Inform(ctx context.Context, c Client) (Answer, error)
	// Boot answers a boot client that asks on port 4011, having an address already.
	Boot(ctx context.Context, c Client) (Boot, error)
	// Release tells that the client gave addr back.
	Release(ctx context.Context, c Client, addr netip.Addr) error
	// Decline tells that the client found addr to be used by somebody else.
	Decline(ctx context.Context, c Client, addr netip.Addr) error
}

// ErrNotMine is a Decider's word for a client that another server is in charge of.
var ErrNotMine = errors.New("not this server's client")

// Refusal is a Decider's answer to a REQUEST that must not be granted: the client gets a NAK with the
// reason and starts over.
type Refusal struct{ Reason string }

func (r *Refusal) Error() string { return "refused: " + r.Reason }

// Answer is what a client is told. Zero fields are left out of the reply.
type Answer struct {
	Address  netip.Addr
	Prefix   netip.Prefix // the subnet of Address; gives the mask and the broadcast address
	Router   []netip.Addr
	DNS      []netip.Addr
	NTP      []netip.Addr
	Domain   string
	Hostname string
	MTU      int           // bytes, 68 to 65535
	Lease    time.Duration // at least one second; renewal and rebinding times follow from it
	Boot     Boot
	// Server is the server identifier. Zero means: the address of the receiving interface that lies in
	// Prefix, or else the one that the packet was sent to.
	Server netip.Addr
}
