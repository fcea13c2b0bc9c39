package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// The host stream is one HTTP/2 request that nodeagent opens and keeps:
// POST /v1/hosts/NAME/stream. Both bodies are newline-delimited JSON frames.
// Each frame has exactly one field set.

// HostFrame is a frame from a host.
type HostFrame struct {
	Hello  *Hello      `json:"hello,omitempty"`
	Status *HostStatus `json:"status,omitempty"`
	Ping   *Ping       `json:"ping,omitempty"`
	// Renew requests a new certificate for a CSR (PEM).
	Renew string `json:"renew,omitzero"`
	// Event is something that happened on the host.
	Event *Event `json:"event,omitempty"`
	// BGP is the state of the host's speaker.
	BGP *BGPStatus `json:"bgp,omitempty"`
	// Usage is sent while bootd requests it.
	Usage *HostUsage `json:"usage,omitempty"`
	// Recount answers a restored bootd.
	Recount *Recount `json:"recount,omitempty"`
}

// Hello is the first frame: what the host has cached, so that only the
// difference is sent.
type Hello struct {
	UID          string            `json:"uid"`
	AgentVersion string            `json:"agentVersion"`
	Time         time.Time         `json:"time" doc:"The host's clock."`
	Epoch        int64             `json:"epoch"`
	Revision     int64             `json:"revision"`
	Digests      map[string]string `json:"digests,omitempty" doc:"Of the cached parts, by name."`
}

// Ping keeps the stream alive and proves that both ends respond.
type Ping struct {
	Time time.Time `json:"time"`
}

// ServerFrame is a frame from bootd.
type ServerFrame struct {
	Part *PartUpdate `json:"part,omitempty"`
	// Gone names a part that is no longer in the HostSpec: the host keeps it
	// running and reports it Orphaned, unless a tombstone follows.
	Gone        string      `json:"gone,omitzero"`
	Tombstones  []Tombstone `json:"tombstones,omitempty"`
	Bookmark    *Bookmark   `json:"bookmark,omitempty"`
	Pong        *Ping       `json:"pong,omitempty"`
	Certificate string      `json:"certificate,omitzero" doc:"PEM, in answer to renew."`
	// Audit forwards to a reflector what another host has received from it.
	Audit *BGPAudit `json:"audit,omitempty"`
	// Open requests a channel, through which a user reaches something on the
	// host.
	Open *Channel `json:"open,omitempty"`
	// Usage requests the usage of the host and its Guests.
	Usage *UsageRequest `json:"usage,omitempty"`
	// Recount requests a list of what the host has, after a restore.
	Recount *RecountRequest `json:"recount,omitempty"`
	// Refused ends the stream; the message says why and what to do.
	Refused string `json:"refused,omitzero"`
}

// Channel is opened by the host on request, with a request of its own: POST
// /v1/hosts/NAME/channels/ID, whose bodies carry raw bytes in both directions.
// The request ?refused=WHY means that the host has nothing to open.
type Channel struct {
	ID    string `json:"id" doc:"Good once, for ten seconds, for this host."`
	Kind  string `json:"kind" enum:"console,exec,vnc,export"`
	Guest string `json:"guest"`
	UID   string `json:"uid" doc:"The Guest's."`
}

// The Kinds of Channel.
const (
	ChannelConsole = "console" // a Guest's serial console
	ChannelExec    = "exec"    // bootd sends a GuestExec, the host a GuestExecAnswer
	ChannelExport  = "export"  // bootd sends a GuestExport, the host ExportLines
	ChannelVNC     = "vnc"     // RFB, as a Guest's display speaks it
)

// PartUpdate is a complete part, or a delta to the part with digest Base.
type PartUpdate struct {
	Name   string `json:"name"`
	Digest string `json:"digest" doc:"Of the part after the update."`
	Value  Part   `json:"value,omitempty"`
	Base   string `json:"base,omitzero" doc:"Digest of the part that the delta applies to."`
	// Delta changes a Network's peers; a host that does not have Base reopens
	// its stream to get the complete part.
	Delta *PeerDelta `json:"delta,omitempty"`
}

// PeerDelta changes the peers of a Network part.
type PeerDelta struct {
	Put    []NetworkPeer `json:"put,omitempty"`
	Remove []string      `json:"remove,omitempty" doc:"Leases (prefixes) that are gone."`
}

// Apply returns a Network part with its peers changed. They are sorted by lease, so
// that both ends compute the same digest.
func (d *PeerDelta) Apply(p Part) (Part, error) {
	var n NetworkPart
	if err := json.Unmarshal(p, &n); err != nil {
		return nil, fmt.Errorf("a delta for a part that is not a Network: %w", err)
	}
	peers := map[string]NetworkPeer{}
	for _, peer := range n.Peers {
		peers[peer.Lease.String()] = peer
	}
	for _, lease := range d.Remove {
		delete(peers, lease)
	}
	for _, peer := range d.Put {
		peers[peer.Lease.String()] = peer
	}
	n.Peers = slices.SortedFunc(maps.Values(peers), func(a, b NetworkPeer) int {
		if c := a.Lease.Addr().Compare(b.Lease.Addr()); c != 0 {
			return c
		}
		return a.Lease.Bits() - b.Lease.Bits()
	})
	return EncodePart(n)
}

// Bookmark closes a batch: all parts up to Revision have been sent, and what
// the batch did not name is unchanged.
type Bookmark struct {
	Epoch    int64 `json:"epoch"`
	Revision int64 `json:"revision"`
	// Hold is of a bootd that was restored: the host continues as it is, and knows
	// the epoch from now on. It starts nothing that it was not to start before.
	Hold bool `json:"hold,omitzero"`
}

// JoinRequest is what nodeagent sends once per BootAttempt, over TLS with the
// join token as a bearer token: POST /v1/join.
type JoinRequest struct {
	Machine string    `json:"machine"`
	CSR     string    `json:"csr" doc:"PEM PKCS#10 request; bootd sets the names."`
	Time    time.Time `json:"time" doc:"The host's clock, for the record."`
	BootID  string    `json:"bootID,omitzero"`
}

// JoinResponse makes a machine a host.
type JoinResponse struct {
	Machine     string    `json:"machine"`
	UID         string    `json:"uid"`
	Certificate string    `json:"certificate" doc:"PEM client certificate, host:NAME."`
	CA          string    `json:"ca" doc:"PEM certificates of the site's CA."`
	API         []string  `json:"api" doc:"URLs of bootd, in the order in which to try them."`
	Time        time.Time `json:"time" doc:"bootd's clock."`
	AttemptID   string    `json:"attemptID"`
}

// AgentConfig is the file that Ignition writes for nodeagent
// (/etc/rackweft/nodeagent.yaml).
type AgentConfig struct {
	Machine   string   `json:"machine"`
	UID       string   `json:"uid"`
	API       []string `json:"api"`
	CA        string   `json:"ca"`
	AttemptID string   `json:"attemptID"`
	// JoinTokenFile holds the one-time token; nodeagent removes the file once it has joined.
	JoinTokenFile string `json:"joinTokenFile,omitzero"`
	// HostSpec is the least that nodeagent acts upon: what it has cached from
	// before this boot is not, for its Guests may run elsewhere by now.
	HostSpec Bookmark `json:"hostSpec,omitzero"`
	// Metrics is where nodeagent serves /metrics over HTTP, as address:port;
	// Default: nowhere.
	Metrics string `json:"metrics,omitzero"`
	// Kernel is the digest of the kernel that the machine boots. nodeagent tries
	// KVM with it where the host has no file of its kernel.
	Kernel SHA256 `json:"kernel,omitzero"`
}

// EventType is Normal or Warning.
type EventType string

// The types of event.
const (
	Normal  EventType = "Normal"
	Warning EventType = "Warning"
)

// Event is something that happened to an object.
type Event struct {
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind"`
	Name    string    `json:"name"`
	UID     string    `json:"uid,omitzero"`
	Type    EventType `json:"type" enum:"Normal,Warning"`
	Reason  string    `json:"reason"`
	Message string    `json:"message"`
}

// Decision is why a machine got the answer that it got.
type Decision struct {
	Time     time.Time         `json:"time"`
	Machine  string            `json:"machine,omitzero" doc:"Empty when no Machine has the MAC."`
	MAC      MAC               `json:"mac,omitzero"`
	Peer     string            `json:"peer,omitzero" doc:"Address that asked."`
	Question string            `json:"question" doc:"dhcp, tftp, script, pointer, config, asset, join, boot, power."`
	Answer   string            `json:"answer"`
	Reason   string            `json:"reason"`
	Attempt  string            `json:"attempt,omitzero"`
	Details  map[string]string `json:"details,omitempty"`
}

// AuditRecord is one change that a person or a host asked for.
type AuditRecord struct {
	Time   time.Time `json:"time"`
	Who    string    `json:"who"`
	Role   string    `json:"role"`
	From   string    `json:"from"`
	Method string    `json:"method"`
	Path   string    `json:"path"`
	Status int       `json:"status"`
	Diff   []Change  `json:"diff,omitempty" doc:"What changed; Secrets are masked."`
}

// Change is one field that differs.
type Change struct {
	Pointer string `json:"pointer"`
	Old     any    `json:"old,omitempty"`
	New     any    `json:"new,omitempty"`
}

// Explanation is the answer to why a Machine is as it is.
type Explanation struct {
	Machine   *Machine   `json:"machine,omitempty"`
	Summary   []string   `json:"summary" doc:"Sentences: its progress, what it waits for, what to do."`
	Decisions []Decision `json:"decisions,omitempty"`
	Events    []Event    `json:"events,omitempty"`
	Origins   []Origin   `json:"origins,omitempty" doc:"Which Layer each part of its config comes from."`
	// Console is for those who may open the console.
	Console []ConsoleLine `json:"console,omitempty" doc:"The last lines of its serial console."`
}

// Origin says which Layer a file, unit or user of a config comes from.
type Origin struct {
	Path      string   `json:"path"`
	Layer     string   `json:"layer"`
	Overrides []string `json:"overrides,omitempty"`
}
