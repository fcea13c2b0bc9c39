package dhcp

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Decider decides the answers to clients. Many workers call its methods at
// once, each with a context that ends after Config.Timeout.
//
// With ErrNotMine the client gets no answer and is left to another server. A
// *Refusal is sent as a NAK to a REQUEST, and is no answer to anything else.
// Other errors are logged, counted, and not answered: clients repeat their
// requests.
type Decider interface {
	// Offer answers a DISCOVER. An Answer without an address is a proxy offer:
	// only a boot file, in addition to another server's address. Proxy offers
	// are sent only to clients that boot.
	Offer(ctx context.Context, c Client) (Answer, error)
	// Request answers a REQUEST for addr. The lease must be durable when it
	// returns.
	Request(ctx context.Context, c Client, addr netip.Addr) (Answer, error)
	// Inform answers a client that has an address (c.ClientAddr) and requests
	// everything else. Address and Lease of the Answer are ignored.
	Inform(ctx context.Context, c Client) (Answer, error)
	// Boot answers a boot client on port 4011, which has an address already.
	Boot(ctx context.Context, c Client) (Boot, error)
	// Release reports that the client has released addr.
	Release(ctx context.Context, c Client, addr netip.Addr) error
	// Decline reports that the client found addr in use by another machine.
	Decline(ctx context.Context, c Client, addr netip.Addr) error
}

// ErrNotMine means that another server is responsible for the client.
var ErrNotMine = errors.New("not this server's client")

// Refusal is a Decider's answer to a REQUEST that must not be granted: the client gets a NAK with the
// reason and starts over.
type Refusal struct{ Reason string }

func (r *Refusal) Error() string { return "refused: " + r.Reason }

// Answer is the content of a reply. Zero fields are omitted.
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
	// Server is the server identifier. Default: the address of the receiving
	// interface that lies in Prefix, or else the one that the packet was sent
	// to.
	Server netip.Addr
}
