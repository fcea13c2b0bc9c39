package api

import (
	"net/netip"
	"time"
)

// BGPStatus is a host's report about its speaker: sent at first, when a session
// changes its state, and otherwise every few seconds while counters change. It
// is kept in memory only.
type BGPStatus struct {
	Role       string             `json:"role,omitzero" enum:"client,reflector" doc:"Whether the host reflects routes."`
	Sessions   []BGPSession       `json:"sessions,omitempty" doc:"Sessions of the host's own speaker."`
	Problem    string             `json:"problem,omitzero" doc:"What of its part the speaker could not apply."`
	Kernel     int                `json:"kernel,omitzero" doc:"Routes in the kernel."`
	Unresolved int                `json:"unresolved,omitzero" doc:"Routes whose next hop the kernel cannot reach."`
	Services   []BGPServiceStatus `json:"services,omitempty" doc:"Addresses of Services that this host has."`
	// Routes are the best routes of a reflector, by prefix, at most
	// MaxBGPRoutes; other hosts report none.
	Routes  []BGPRoute `json:"routes,omitempty" doc:"The best ones of a reflector, by prefix."`
	Omitted int        `json:"omitted,omitzero" doc:"Routes beyond those that are listed."`
	// Networks are the speakers inside Networks, by name.
	Networks []BGPNetworkStatus `json:"networks,omitempty" doc:"Of the host's speakers inside Networks, by name."`
	// Reported is set by bootd on receipt.
	Reported time.Time `json:"reported,omitzero" doc:"When bootd received it."`
}

// BGPNetworkStatus is the state of a speaker inside a Network on one host.
type BGPNetworkStatus struct {
	Network string `json:"network" doc:"Name of the Network."`
	// Sessions are with guests and with the Network's speakers on other hosts.
	// A session that has never come up is omitted.
	Sessions   []BGPSession `json:"sessions,omitempty" doc:"Sessions with guests and with the Network's speakers on other hosts; one that never came up is left out."`
	Kernel     int          `json:"kernel,omitzero" doc:"Routes in the kernel."`
	Unresolved int          `json:"unresolved,omitzero" doc:"Routes whose next hop the kernel cannot reach."`
	Problem    string       `json:"problem,omitzero" doc:"What of its part the speaker could not apply."`
}

// MaxBGPRoutes is how many routes a report lists.
const MaxBGPRoutes = 2000

// BGPSession is one session as reported by one end.
type BGPSession struct {
	Peer       string     `json:"peer" doc:"Name of the neighbour in the bgp part."`
	Address    netip.Addr `json:"address,omitzero" doc:"Address of the neighbour."`
	Role       string     `json:"role,omitzero" enum:"reflector,client,uplink,guest,host" doc:"What the neighbour is to this speaker."`
	State      string     `json:"state" enum:"idle,connect,active,opensent,openconfirm,established,limited" doc:"limited: ended for too many prefixes, and tried again within a minute."`
	Since      time.Time  `json:"since,omitzero" doc:"When it came into this state. By a host's own clock when a host reports it, else by bootd's."`
	Received   int        `json:"received,omitzero" doc:"Prefixes of both families."`
	Accepted   int        `json:"accepted,omitzero" doc:"Those of Received that the policy accepts."`
	Advertised int        `json:"advertised,omitzero" doc:"Paths advertised to it, as of the last look at all routes."`
	Flaps      int        `json:"flaps,omitzero" doc:"How often it was lost since the speaker started."`
	LastError  string     `json:"lastError,omitzero" doc:"Why it was lost, or does not come up."`
	Digest     string     `json:"digest,omitzero" doc:"Over the prefixes and next hops received, of reflectors and uplinks only."`
	Digested   time.Time  `json:"digested,omitzero" doc:"When Digest was taken, by the host's own clock."`
}

// BGPServiceStatus is one address of a Service on one host.
type BGPServiceStatus struct {
	Service   string     `json:"service" doc:"Name of the Service."`
	Address   netip.Addr `json:"address" doc:"Address of the Service."`
	State     string     `json:"state" enum:"checking,announced,lastResort,withdrawn" doc:"checking: not checked yet, not announced. lastResort: the check fails, announced as worse than any other host's."`
	Since     time.Time  `json:"since" doc:"When it came into this state."`
	Failures  int        `json:"failures,omitzero" doc:"How often it began to fail since the speaker started."`
	LastError string     `json:"lastError,omitzero" doc:"Why its check last failed, or why it cannot be announced."`
}

// The states of a Service's address on a host.
const (
	ServiceChecking   = "checking" // not checked yet; not announced
	ServiceAnnounced  = "announced"
	ServiceLastResort = "lastResort" // its check fails; announced as worse than any other host's
	ServiceWithdrawn  = "withdrawn"
)

// BGPAudit makes a reflector compare what a neighbour has received with what
// was advertised to it, and advertise everything again when they differ.
type BGPAudit struct {
	Neighbor string `json:"neighbor"`
	Received int    `json:"received"`
	Digest   string `json:"digest"`
	// Digested distinguishes consecutive digests that are equal.
	Digested time.Time `json:"digested"`
}

// BGPEstablished is the State of a session that is up.
const BGPEstablished = "established"

// BGPRoute is one route of a Zone.
type BGPRoute struct {
	Prefix  netip.Prefix `json:"prefix" doc:"Destination prefix."`
	NextHop netip.Addr   `json:"nextHop" doc:"Next hop of the route."`
	From    string       `json:"from" doc:"Name of the neighbour that advertised it; empty for the reflector's own."`
	ASPath  []uint32     `json:"asPath,omitempty" doc:"AS path as received, nearest AS first."`
	Stale   bool         `json:"stale,omitzero" doc:"Kept over a restart of the neighbour (RFC 4724, 9494)."`
}

// ZoneSessions is bootd's view of a Zone's sessions.
type ZoneSessions struct {
	Zone     string        `json:"zone"`
	Sessions []ZoneSession `json:"sessions"`
	// Inside are the sessions of speakers of Networks whose guests peer.
	Inside []NetworkSession `json:"inside,omitempty" doc:"Sessions of speakers of Networks whose guests peer, by Network and host."`
}

// NetworkSession is a session of a host's speaker inside a Network: with a
// guest, or with another host's speaker.
type NetworkSession struct {
	Network string     `json:"network"`
	Host    string     `json:"host"`
	Session BGPSession `json:"session"`
}

// ZoneSession is one expected session, and the reports of its ends.
type ZoneSession struct {
	Host    string      `json:"host" doc:"The reflector."`
	Session BGPSession  `json:"session" doc:"As the reflector reports it; its state is empty when that has reported nothing."`
	Other   *BGPSession `json:"other,omitempty" doc:"As the other host reports it."`
	// Message describes a fault that the reports of the ends do not show.
	Message string `json:"message,omitzero"`
}

// ZoneRoutes are the routes of a Zone's reflectors.
type ZoneRoutes struct {
	Zone   string      `json:"zone"`
	Routes []ZoneRoute `json:"routes"`
	// Omitted counts routes that the reflectors did not list.
	Omitted int `json:"omitted,omitzero"`
}

// ZoneRoute is a route that a host should originate, or that an uplink
// advertised.
type ZoneRoute struct {
	Prefix  netip.Prefix `json:"prefix"`
	NextHop netip.Addr   `json:"nextHop,omitzero"`
	Origin  string       `json:"origin" doc:"The host that originates it, or the uplink."`
	Network string       `json:"network,omitzero" doc:"The Network that has it as a lease."`
	Service string       `json:"service,omitzero" doc:"The Service that has it as an address."`
	// Loopback: it is the host's own address.
	Loopback bool `json:"loopback,omitzero"`
	Wanted   bool `json:"wanted" doc:"A host is to originate it."`
	// State is of a Service's address, as the host reports it.
	State  string   `json:"state,omitzero" enum:"checking,announced,lastResort,withdrawn"`
	Reason string   `json:"reason,omitzero" doc:"Why it is not announced as it should be."`
	At     []string `json:"at,omitempty" doc:"The reflectors that report to have it."`
	Stale  bool     `json:"stale,omitzero"`
}

// BGPTest is the result of a Zone's policies for one prefix from one host, or
// from an uplink.
type BGPTest struct {
	Zone   string       `json:"zone"`
	From   string       `json:"from"`
	Prefix netip.Prefix `json:"prefix"`
	// Accepted: at least one reflector accepts it.
	Accepted   bool            `json:"accepted"`
	Reason     string          `json:"reason" doc:"What decides, in a sentence."`
	Reflectors []BGPTestAnswer `json:"reflectors,omitempty"`
}

// BGPTestAnswer is the decision of one reflector.
type BGPTestAnswer struct {
	Reflector string          `json:"reflector"`
	Accepted  bool            `json:"accepted"`
	Reason    string          `json:"reason"`
	Told      []BGPTestExport `json:"told,omitempty" doc:"To whom it is advertised."`
}

// BGPTestExport is one neighbour, or all hosts, and whether a route is
// advertised to it.
type BGPTestExport struct {
	To     string `json:"to"`
	Told   bool   `json:"told"`
	Reason string `json:"reason"`
}
