package httpboot

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/google/uuid"

	"github.com/rackweft/rackweft/internal/text"
)

// Decider decides what a machine boots. A *Hold or a *Refusal is sent to the
// client; any other error is logged, and the client is asked to retry.
type Decider interface {
	// Script returns the iPXE script for c.
	Script(ctx context.Context, c Client) (Script, error)
	// Pointer returns the first Ignition config of a machine.
	Pointer(ctx context.Context, r PointerRequest) (Pointer, error)
}

// PointerRequest is a request for a machine's first Ignition config.
type PointerRequest struct {
	Machine string     // from the URL
	Key     string     // from the URL: only the machine's script has it
	Accept  string     // the HTTP header: which versions of Ignition configs the client takes
	Peer    netip.Addr // the client's address
	Conn    string     // identifies the connection
}

// Pointer is a machine's first Ignition config.
type Pointer struct {
	Config      []byte
	ContentType string
	// Sent is called once, when the response was written: arrived reports
	// whether the client has received any of it, or may have.
	Sent func(arrived bool)
}

// Assets opens blobs by digest ("sha256:" and 64 lower-case hexadecimal
// digits). It decides which are public; for others, as for missing ones, it
// returns fs.ErrNotExist.
type Assets interface {
	Asset(ctx context.Context, digest string) (Asset, error)
}

// Asset is an open blob. Content should be an *os.File, which the kernel can
// copy to the network.
type Asset struct {
	Content io.ReadSeekCloser
	Size    int64
	ModTime time.Time
}

// Hold makes a machine wait: 503, with a retry.
type Hold struct {
	Reason     string
	RetryAfter time.Duration // Default: 5 s
}

func (h *Hold) Error() string { return "held: " + h.Reason }

// Refusal fails a machine's boot: Ignition does not retry.
type Refusal struct {
	Status int // 403 or 404. Default: 403
	Reason string
}

func (r *Refusal) Error() string { return "refused: " + r.Reason }

// Client describes the machine that sent a request. All but Addr can be claimed
// by anyone.
type Client struct {
	MAC       net.HardwareAddr // nil if none was sent
	UUID      uuid.UUID        // as SMBIOS prints it; uuid.Nil if none, or an invalid one, was sent
	Addr      netip.Addr       // of the peer
	Query     url.Values       // all that the first-stage script sends: see firststage.ipxe
	UserAgent string
}

// newClient parses the query.
func newClient(r *http.Request) (Client, error) {
	query := r.URL.Query()
	c := Client{Addr: peerOf(r).Addr(), Query: query, UserAgent: r.UserAgent()}
	if asked := query.Get("mac"); asked != "" {
		mac, err := net.ParseMAC(asked)
		if err != nil || len(mac) != 6 {
			return c, fmt.Errorf("invalid MAC address %q: want one such as 52:54:00:01:07:00 or 52-54-00-01-07-00", text.Clip(asked, 64))
		}
		c.MAC = mac
	}
	// Some boards have no UUID, or an invalid one; they boot all the same.
	if id, err := uuid.Parse(query.Get("uuid")); err == nil {
		c.UUID = id
	}
	return c, nil
}

// peerOf returns the peer of the connection.
func peerOf(r *http.Request) netip.AddrPort {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.AddrPort{} // net/http always sets it
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
