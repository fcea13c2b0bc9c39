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

// Status is what a speaker shows.
type Status struct {
	PID      int        `json:"pid"`
	Version  string     `json:"version"`
	Started  time.Time  `json:"started"`
	Zone     string     `json:"zone,omitzero"`
	Network  string     `json:"network,omitzero" doc:"That the speaker is inside of."`
	Role     string     `json:"role,omitzero"`
	ASN      uint32     `json:"asn,omitzero"`
	RouterID netip.Addr `json:"routerID,omitzero"`

	Part    string `json:"part,omitzero" doc:"SHA-256 of the file that was applied, or was refused."`
	Refused string `json:"refused,omitzero" doc:"Why the file is not applied: the speaker goes on with what it had."`
	Problem string `json:"problem,omitzero" doc:"What failed of it, and is tried again."`
	Filter  string `json:"filter,omitzero" doc:"Why not all that guests announce is let through by their filters; it is tried again."`

	Guests string `json:"guests,omitzero" doc:"Why the Zone is not told of all that guests announce."`

	Settled bool `json:"settled" doc:"Every neighbor has told all its routes since the start, or has had the time to."`
	// Deferring says that no neighbor is told anything yet (RFC 4724, section 4.1).
	Deferring bool `json:"deferring,omitzero" doc:"Neighbors are told nothing yet: others are to tell their routes first."`
	// HeldSince is since when there is no session at all; the kernel keeps its
	// routes until HeldUntil, for ever without one.
	HeldSince time.Time `json:"heldSince,omitzero"`
	HeldUntil time.Time `json:"heldUntil,omitzero"`

	Sessions   []Session      `json:"sessions"`
	Originate  []netip.Prefix `json:"originate,omitempty"`
	Aggregates []netip.Prefix `json:"aggregates,omitempty" doc:"Those that are announced now."`
	Loopbacks  []netip.Addr   `json:"loopbacks,omitempty" doc:"This host's own addresses, which are on lo and announced."`
	Learned    int            `json:"learned" doc:"Prefixes for the kernel."`
	FIB        fib.State      `json:"fib"`
	Memory     int64          `json:"memory" doc:"Bytes that the speaker has resident."`
	// Services are the addresses of services that this host has.
	Services []api.BGPServiceStatus `json:"services,omitempty"`
	Healed   int64                  `json:"healed" doc:"Times that a neighbor was told all routes again because it missed some."`
}

// Session is one neighbour.
type Session struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	Role    string     `json:"role"`
	State   string     `json:"state" enum:"idle,connect,active,opensent,openconfirm,established,limited" doc:"limited: ended for too many prefixes, and tried again within a minute."`
	Since   time.Time  `json:"since,omitzero" doc:"Of an established session."`
	Reason  string     `json:"reason,omitzero" doc:"Why it last ended, while this speaker ran."`
	// Losses counts how often it ended while this speaker ran, by reason.
	Losses map[string]int `json:"losses,omitempty"`
	// Received are the paths that it has told, Accepted those that the policy
	// let in, Advertised those that it is told. The latter two are as of the
	// last look at all routes.
	Received   int `json:"received"`
	Accepted   int `json:"accepted"`
	Advertised int `json:"advertised"`
	EVPN       int `json:"evpn,omitzero" doc:"EVPN routes that it has told, which the others do not count."`
	// Digest is over prefixes and next hops that were received, of reflectors
	// and uplinks only, and only where it was asked for.
	Digest string `json:"digest,omitzero"`

	told bool // all its routes, as far as it says when that is
}

// Flaps is how often it ended while this speaker ran.
func (s Session) Flaps() int {
	n := 0
	for _, times := range s.Losses {
		n += times
	}
	return n
}

// Established reports whether the session is up.
func (s Session) Established() bool { return s.State == "established" }

// Silent reports whether it is one inside of a Network that never came up: guests
// need not speak BGP, and hosts without guests have no speaker there.
func (s Session) Silent() bool {
	return (s.Role == api.BGPGuest || s.Role == api.BGPHost) && !s.Established() && s.Flaps() == 0 && s.Reason == "" && s.State != "limited"
}

// Line is the Status in one line.
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
		line += fmt.Sprintf(", %d not as they should be (%s: %s)", s.FIB.Unsettled, s.FIB.Unresolved[0].Prefix, s.FIB.Unresolved[0].Reason)
	}
	if i := slices.IndexFunc(s.Services, func(x api.BGPServiceStatus) bool { return x.State != api.ServiceAnnounced }); i >= 0 {
		x := s.Services[i]
		line += fmt.Sprintf("; %s of service %s is %s: %s", x.Address, x.Service, x.State, cmp.Or(x.LastError, "not looked at yet"))
	}
	if s.Deferring {
		line += "; tells nobody anything before the others have told their routes"
	}
	if !s.HeldSince.IsZero() {
		line += fmt.Sprintf("; no session since %s, the kernel's routes are held", s.HeldSince.UTC().Format("15:04:05 MST"))
	}
	if s.Refused != "" {
		line += "; the part is refused: " + s.Refused
	}
	for _, text := range []string{s.Problem, s.Filter, s.Guests} {
		if text != "" {
			line += "; " + text
		}
	}
	return line
}
