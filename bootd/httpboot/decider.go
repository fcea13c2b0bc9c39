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

// Decider says what a machine boots. An error that is a *Hold or a *Refusal is told to the client; any
// other is logged, and the client told to try again.
type Decider interface {
	// Script is the iPXE script for c.
	Script(ctx context.Context, c Client) (Script, error)
	// Pointer is the first Ignition config of a machine.
	Pointer(ctx context.Context, r PointerRequest) (Pointer, error)
}

// PointerRequest is a request for a machine's first Ignition config.
type PointerRequest struct {
	Machine string     // from the URL
	Key     string     // from the URL: only the machine's script has it
	Accept  string     // the HTTP header: which versions of Ignition configs the client takes
	Peer    netip.Addr // who asks
	Conn    string     // names the connection
}

// Pointer is a machine's first Ignition config.
type Pointer struct {
	Config      []byte
	ContentType string
	// Sent is called once, when the response was written: whether anything of the
	// config has arrived, or may have.
	Sent func(arrived bool)
}

// Assets opens blobs by digest ("sha256:" and 64 lower-case hexadecimal digits). It decides which of them
// anyone may have; the others, as those that are not there, are an error that is fs.ErrNotExist.
type Assets interface {
	Asset(ctx context.Context, digest string) (Asset, error)
}

// Asset is an open blob. Content is best an *os.File: then the kernel copies it to the network.
type Asset struct {
	Content io.ReadSeekCloser
	Size    int64
	ModTime time.Time
}

// Hold keeps a machine waiting: 503, to be asked again.
type Hold struct {
	Reason     string
	RetryAfter time.Duration // 5 s if 0
}

func (h *Hold) Error() string { return "held: " + h.Reason }

// Refusal fails a machine's boot: Ignition does not ask again.
type Refusal struct {
	Status int // 403 or 404; 403 if 0
	Reason string
}

func (r *Refusal) Error() string { return "refused: " + r.Reason }

// Client is what a request tells about the machine that sent it. All but Addr can be claimed by anyone.
type Client struct {
	MAC       net.HardwareAddr // nil if none was sent
	UUID      uuid.UUID        // as SMBIOS prints it; uuid.Nil if none, or no valid one, was sent
	Addr      netip.Addr       // of the peer
	Query     url.Values       // all that the first-stage script sends: see firststage.ipxe
	UserAgent string
}

// newClient reads what the query tells.
func newClient(r *http.Request) (Client, error) {
	query := r.URL.Query()
	c := Client{Addr: peerOf(r).Addr(), Query: query, UserAgent: r.UserAgent()}
	if asked := query.Get("mac"); asked != "" {
		mac, err := net.ParseMAC(asked)
		if err != nil || len(mac) != 6 {
			return c, fmt.Errorf("%q is no MAC address: write it as 52:54:00:01:07:00 or 52-54-00-01-07-00", text.Clip(asked, 64))
		}
		c.MAC = mac
	}
	// Some boards have no UUID, or rubbish in its place; they boot all the same.
	if id, err := uuid.Parse(query.Get("uuid")); err == nil {
		c.UUID = id
	}
	return c, nil
}

// peerOf is the other end of the connection.
func peerOf(r *http.Request) netip.AddrPort {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.AddrPort{} // net/http always sets it
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
