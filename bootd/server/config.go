package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/boot"
	"github.com/rackweft/rackweft/bootd/hostspec"
	"github.com/rackweft/rackweft/bootd/httpboot"
	"github.com/rackweft/rackweft/bootd/journal"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

// Hub holds the streams of hosts.
type Hub interface {
	Serve(ctx context.Context, p hostspec.Peer, c hostspec.Conn) error
	// Heartbeat is when the host last sent something; false when it is not connected.
	Heartbeat(name string) (time.Time, bool)
	// Holds says why no channel can be requested from a host, nil if one can.
	Holds(name, uid string) error
	// Open requests a channel from a host.
	Open(name, uid string, c api.Channel) error
	// Reported is a host's last report, which may be newer than the stored one; it must not be modified.
	Reported(name string) (*api.HostStatus, bool)
	// BGP is the host's last report about its speaker, nil for none.
	BGP(name string) *api.BGPStatus
	// Usage requests the hosts' usage; hosts that are not connected are omitted.
	Usage(ctx context.Context, names []string) map[string]hostspec.UsageSample
}

// Compiler compiles HostSpecs.
type Compiler interface {
	Compile(ctx context.Context, m *api.Machine) (*api.HostSpec, error)
}

// Zones reports on the Zones' BGP.
type Zones interface {
	// Drops says in sentences which sessions would drop if o were stored.
	Drops(ctx context.Context, o api.Object) ([]string, error)
	ZoneSessions(ctx context.Context, zone string) (*api.ZoneSessions, error)
	ZoneRoutes(ctx context.Context, zone string) (*api.ZoneRoutes, error)
	TestPolicy(ctx context.Context, zone, from string, p netip.Prefix) (*api.BGPTest, error)
}

// Decider answers booting machines, and explains its decisions. Its errors are *api.Problem where the machine
// should see them.
type Decider interface {
	// ConfigFor returns a Machine's config.
	ConfigFor(ctx context.Context, r boot.ConfigRequest) (boot.HostConfig, error)
	// SecureScript, SecureLoader, SecureBlob and SecurePointer answer callers that present the boot URL of a Machine's
	// BootAttempt.
	SecureScript(ctx context.Context, name, key string, peer netip.Addr) (string, error)
	SecureLoader(ctx context.Context, name, key, file string, peer netip.Addr) error
	// FetchedLoader is called for every boot loader that was sent completely.
	FetchedLoader(ctx context.Context, peer netip.Addr, file string)
	SecureBlob(ctx context.Context, name, key string, peer netip.Addr, digest api.SHA256) error
	SecurePointer(ctx context.Context, r httpboot.PointerRequest) (httpboot.Pointer, error)
	// Medium answers a Machine's BMC that presents the URL of its BootAttempt's image.
	Medium(ctx context.Context, name, key string, peer netip.Addr) (boot.Medium, error)
	Join(ctx context.Context, token string, peer netip.Addr, r api.JoinRequest) (*api.JoinResponse, error)
	// Origins says which Layer each part of the Machine's config comes from.
	Origins(m *api.Machine) (origins []api.Origin, warnings []string, err error)
}

// Token authenticates its bearer as a person.
type Token struct {
	Name   string
	Role   string     // viewer, operator or admin
	SHA256 api.SHA256 // of the token
}

// Config configures a Server. Audit, Registerer and Tokens may be nil.
type Config struct {
	// Listen is the TCP address of the TLS listener; none when empty.
	Listen string
	// Known reports whether an address is a registered Machine's: most of the connections to Listen are reserved
	// for those, and for authenticated callers. nil: none is.
	Known func(netip.Addr) bool
	// Socket is the path of the unix socket; none when empty.
	Socket string
	// TLS is for the TLS listener: it verifies presented client certificates against the Site's CA.
	TLS    *tls.Config
	Tokens []Token

	Store *store.Store
	Cache *store.Cache
	Blobs *blob.Store
	// Loaders are the boot loaders that a boot URL names; nil: there are none.
	Loaders  fs.FS
	Hub      Hub
	Compiler Compiler
	Networks *network.Index
	Zones    Zones
	Decider  Decider
	// Events, Decisions and AuditLog are only read; new audit records go to Audit.
	Events    *journal.Journal[api.Event]
	Decisions *journal.Journal[api.Decision]
	AuditLog  *journal.Journal[api.AuditRecord]
	// ConsoleLines are the last n lines of a Machine's serial console.
	ConsoleLines func(m *api.Machine, n int) []api.ConsoleLine
	// Sensors is what the sensors of a Machine measured last, false where that is not known.
	Sensors func(machine string) (api.Sensors, bool)
	// Console opens a Machine's serial console.
	Console func(ctx context.Context, m *api.Machine) (io.ReadWriteCloser, error)
	// Present looks at what a BMC presents, and sends no password.
	Present  func(ctx context.Context, address string) (hardware.Presented, error)
	Recovery Recovery
	// Backup writes the complete state of bootd, unencrypted; nil for none.
	Backup func(ctx context.Context, w io.Writer, blobs bool) error
	// Audit receives every change.
	Audit func(api.AuditRecord)
	// Metrics is shown at /metrics; the Server registers its own with Registerer.
	Metrics    prometheus.Gatherer
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

func (c Config) check() error {
	switch {
	case c.Listen == "" && c.Socket == "":
		return errors.New("the API server has neither an address nor a socket to listen on")
	case c.Listen != "" && c.TLS == nil:
		return fmt.Errorf("the API server has no certificate for %s", c.Listen)
	case c.Store == nil || c.Cache == nil || c.Blobs == nil || c.Hub == nil || c.Compiler == nil || c.Networks == nil || c.Zones == nil ||
		c.Decider == nil || c.Events == nil || c.Decisions == nil || c.AuditLog == nil || c.Console == nil || c.ConsoleLines == nil || c.Sensors == nil || c.Present == nil || c.Recovery == nil || c.Metrics == nil || c.Log == nil:
		return errors.New("the API server's config is incomplete")
	}
	for _, t := range c.Tokens {
		if t.Name == "" || roleOf(t.Role) == anonymous {
			return fmt.Errorf("token %q has role %q: give it a name and one of the roles viewer, operator, admin", t.Name, t.Role)
		}
		if err := new(api.SHA256).UnmarshalText([]byte(t.SHA256)); err != nil {
			return fmt.Errorf("token %q: %w", t.Name, err)
		}
	}
	return nil
}
