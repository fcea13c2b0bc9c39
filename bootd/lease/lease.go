package lease

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Lease is one address and who has it.
type Lease struct {
	Subnet   string
	Address  netip.Addr
	MAC      string // in the form of net.HardwareAddr.String; empty in quarantine
	Machine  string // the registered Machine, or empty
	Hostname string
	// Expires is when the address is free again. In the Backend it may lie up to half a lease later than
	// what the client was told, so that a renewal need not be written each time.
	Expires time.Time
}

// Quarantined tells whether the address is kept back because a client found it in use.
func (l Lease) Quarantined() bool { return l.MAC == "" }

// Backend makes leases durable. There is one Lease per Address.
type Backend interface {
	// List returns all leases, expired ones too.
	List(ctx context.Context) ([]Lease, error)
	// Apply writes put and removes del, durably when it returns nil. No address comes twice. A call never
	// has more than MaxBatch leases in all.
	Apply(ctx context.Context, put, del []Lease) error
}

// MaxBatch is the greatest number of leases in one call of Backend.Apply: what fits into one etcd
// transaction by its defaults.
const MaxBatch = 100

// Range is an inclusive range of IPv4 addresses.
type Range struct{ First, Last netip.Addr }

// Contains tells whether a lies in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

func (r Range) String() string { return r.First.String() + "-" + r.Last.String() }

// Subnet is the dynamic pool of one subnet.
type Subnet struct {
	Name     string
	Prefixes []netip.Prefix // whose network and broadcast addresses are never given away
	Range    Range          // zero: only reserved machines get an address
	Exclude  []netip.Addr   // never given away: gateways, DNS servers, bootd's own addresses
	// Limit is how many addresses unregistered MACs may hold together; 0 means three quarters of the pool.
	Limit int
	// ShortLease is the longest lease for an unregistered MAC; 0 means 10 minutes.
	ShortLease time.Duration
}

// Reservation keeps an address for a MAC, inside or outside of the dynamic range.
type Reservation struct {
	Subnet  string
	MAC     string
	Address netip.Addr
	Machine string
}

// Holder is who asks for an address.
type Holder struct {
	MAC      string // in the form of net.HardwareAddr.String
	Machine  string // the registered Machine that the MAC belongs to, or empty
	Hostname string
}

// What callers branch on. Errors that wrap them say which subnet or address, and what to do.
var (
	ErrNoSubnet    = errors.New("no such subnet")
	ErrExhausted   = errors.New("no free address")
	ErrUnavailable = errors.New("address not available") // to a REQUEST, a reason for a NAK
	ErrReserved    = errors.New("address reserved")
	// ErrUnwritable is a Backend's error when it can be read and not written.
	ErrUnwritable = errors.New("leases cannot be written")
)

const (
	holdTime       = time.Minute
	quarantineTime = 10 * time.Minute
	defaultShort   = 10 * time.Minute
	writeTimeout   = 10 * time.Second
)
