package bgp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bgp/fib"
)

// Status is the state that a speaker serves.
type Status struct {
	PID      int        `json:"pid"`
	Version  string     `json:"version"`
	Started  time.Time  `json:"started"`
	Zone     string     `json:"zone,omitzero"`
	Network  string     `json:"network,omitzero" doc:"The Network of the speaker."`
	Role     string     `json:"role,omitzero"`
	ASN      uint32     `json:"asn,omitzero"`
	RouterID netip.Addr `json:"routerID,omitzero"`

	Part    string `json:"part,omitzero" doc:"SHA-256 of the file that was applied, or was refused."`
	Refused string `json:"refused,omitzero" doc:"Why the file is not applied: the speaker keeps its previous configuration."`
	Problem string `json:"problem,omitzero" doc:"What failed of it, and is tried again."`
	Filter  string `json:"filter,omitzero" doc:"Why the filters do not yet pass everything that guests announce; it is tried again."`

	Guests string `json:"guests,omitzero" doc:"Why not all that guests announce is advertised to the Zone."`

	Settled bool `json:"settled" doc:"Every neighbor has advertised all its routes since the start, or has had the time to."`
	// Deferring: nothing is advertised yet (RFC 4724, section 4.1).
	Deferring bool `json:"deferring,omitzero" doc:"Nothing is advertised yet: neighbors are to advertise their routes first."`
	// HeldSince is the time since when there is no session; the kernel keeps
	// its routes until HeldUntil, or without limit when that is zero.
	HeldSince time.Time `json:"heldSince,omitzero"`
	HeldUntil time.Time `json:"heldUntil,omitzero"`

	Sessions   []Session      `json:"sessions"`
	Originate  []netip.Prefix `json:"originate,omitempty"`
	Aggregates []netip.Prefix `json:"aggregates,omitempty" doc:"Those that are announced now."`
	Loopbacks  []netip.Addr   `json:"loopbacks,omitempty" doc:"This host's own addresses, which are on lo and announced."`
	Learned    int            `json:"learned" doc:"Prefixes for the kernel."`
	FIB        fib.State      `json:"fib"`
	Memory     int64          `json:"memory" doc:"Bytes that the speaker has resident."`
	// Services are the addresses of this host's services.
	Services []api.BGPServiceStatus `json:"services,omitempty"`
	Healed   int64                  `json:"healed" doc:"How often all routes were advertised to a neighbor again because it missed some."`
}

// Session is the session with one neighbour.
type Session struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	Role    string     `json:"role"`
	State   string     `json:"state" enum:"idle,connect,active,opensent,openconfirm,established,limited" doc:"limited: ended for too many prefixes, and tried again within a minute."`
	Since   time.Time  `json:"since,omitzero" doc:"Of an established session."`
	Reason  string     `json:"reason,omitzero" doc:"Why it last ended, while this speaker ran."`
	// Losses counts how often it ended while this speaker ran, by reason.
	Losses map[string]int `json:"losses,omitempty"`
	// Received counts the paths received, Accepted those accepted by the
	// policy, Advertised those advertised to it. The latter two are as of the
	// last read of all routes.
	Received   int `json:"received"`
	Accepted   int `json:"accepted"`
	Advertised int `json:"advertised"`
	EVPN       int `json:"evpn,omitzero" doc:"EVPN routes received from it, which the other counts leave out."`
	// Digest covers the received prefixes and next hops, only of reflectors and
	// uplinks, and only when requested.
	Digest string `json:"digest,omitzero"`

	complete bool // all routes received, if the neighbour sends End-of-RIB
}

// Flaps counts how often it ended while this speaker ran.
func (s Session) Flaps() int {
	n := 0
	for _, times := range s.Losses {
		n += times
	}
	return n
}

// Established reports whether the session is up.
func (s Session) Established() bool { return s.State == "established" }

// Silent reports whether a session inside a Network has never come up: guests
// need not speak BGP, and hosts without guests have no speaker there.
func (s Session) Silent() bool {
	return (s.Role == api.BGPGuest || s.Role == api.BGPHost) && !s.Established() && s.Flaps() == 0 && s.Reason == "" && s.State != "limited"
}

// Line summarises the Status in one line.
func (s Status) Line() string {
	if s.Zone == "" && s.Refused == "" {
		return "Waiting for the host's bgp part"
	}
	up, all := 0, 0
	for _, n := range s.Sessions {
		if n.Established() {
			up++
		}
		if !n.Silent() {
			all++
		}
	}
	line := fmt.Sprintf("%d of %d sessions up, %d routes learned, %d in the kernel", up, all, s.Learned, s.FIB.Installed)
	if s.FIB.Unsettled > 0 {
		line += fmt.Sprintf(", %d wrong (%s: %s)", s.FIB.Unsettled, s.FIB.Unresolved[0].Prefix, s.FIB.Unresolved[0].Reason)
	}
	if i := slices.IndexFunc(s.Services, func(x api.BGPServiceStatus) bool { return x.State != api.ServiceAnnounced }); i >= 0 {
		x := s.Services[i]
		line += fmt.Sprintf("; %s of service %s is %s: %s", x.Address, x.Service, x.State, cmp.Or(x.LastError, "not looked at yet"))
	}
	if s.Deferring {
		line += "; advertises nothing before the others have advertised their routes"
	}
	if !s.HeldSince.IsZero() {
		line += fmt.Sprintf("; no session since %s, the kernel's routes are held", s.HeldSince.UTC().Format("15:04:05 MST"))
	}
	if s.Refused != "" {
		line += "; invalid part: " + s.Refused
	}
	for _, text := range []string{s.Problem, s.Filter, s.Guests} {
		if text != "" {
			line += "; " + text
		}
	}
	return line
}
