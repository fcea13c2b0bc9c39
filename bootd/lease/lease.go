package lease

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Lease is one address and its holder.
type Lease struct {
	Subnet   string
	Address  netip.Addr
	MAC      string // in the form of net.HardwareAddr.String; empty in quarantine
	Machine  string // the registered Machine, or empty
	Hostname string
	// Expires is when the address is free again. In the Backend it may be up to half a lease later than granted to
	// the client, so that not every renewal must be written.
	Expires time.Time
}

// Quarantined reports whether the address is withheld because a client found it in use.
func (l Lease) Quarantined() bool { return l.MAC == "" }

// Backend makes leases durable. There is one Lease per Address.
type Backend interface {
	// List returns all leases, expired ones too.
	List(ctx context.Context) ([]Lease, error)
	// Apply writes put and removes del, durably when it returns nil. No address comes twice. A call never
	// has more than MaxBatch leases in all.
	Apply(ctx context.Context, put, del []Lease) error
}

// MaxBatch is the maximum number of leases in one call of Backend.Apply: what fits into one etcd transaction with
// its defaults.
const MaxBatch = 100

// Range is an inclusive range of IPv4 addresses.
type Range struct{ First, Last netip.Addr }

// Contains reports whether a is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

func (r Range) String() string { return r.First.String() + "-" + r.Last.String() }

// Subnet is the dynamic pool of one subnet.
type Subnet struct {
	Name     string
	Prefixes []netip.Prefix // its network and broadcast addresses are never leased
	Range    Range          // zero: only machines with a reservation get an address
	Exclude  []netip.Addr   // never leased: gateways, DNS servers, bootd's own addresses
	// Limit is how many addresses unregistered MACs may hold together. Default: three quarters of the pool.
	Limit int
	// ShortLease is the longest lease for an unregistered MAC. Default: 10 minutes.
	ShortLease time.Duration
}

// Reservation keeps an address for a MAC, inside or outside of the dynamic range.
type Reservation struct {
	Subnet  string
	MAC     string
	Address netip.Addr
	Machine string
}

// Holder is a client that requests an address.
type Holder struct {
	MAC      string // in the form of net.HardwareAddr.String
	Machine  string // the registered Machine that the MAC belongs to, or empty
	Hostname string
}

// Errors that callers distinguish. Errors that wrap them name the subnet or address, and say what to do.
var (
	ErrNoSubnet    = errors.New("no such subnet")
	ErrExhausted   = errors.New("no free address")
	ErrUnavailable = errors.New("address not available") // to a REQUEST, a reason for a NAK
	ErrReserved    = errors.New("address reserved")
	// ErrUnwritable is a Backend's error when it can be read, but not written.
	ErrUnwritable = errors.New("leases cannot be written")
)

const (
	holdTime       = time.Minute
	quarantineTime = 10 * time.Minute
	defaultShort   = 10 * time.Minute
	writeTimeout   = 10 * time.Second
)
