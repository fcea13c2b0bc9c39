package api

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// Recovery is what a bootd restored from a backup still has to find out:
// Machines, Networks and Guests may have been created, deleted and moved since
// the backup.
type Recovery struct {
	Restored time.Time `json:"restored" doc:"When the backup was restored."`
	Backup   time.Time `json:"backup" doc:"When the backup was taken."`
	// Held: not every Machine has condition Accounted yet.
	Held bool `json:"held,omitzero" doc:"Nothing is powered, booted, placed or allocated, and hosts are sent nothing, until each Machine is accounted for."`
	// Hosts have a certificate of the Site's CA that was issued after the
	// backup.
	Hosts []RecoveryHost `json:"hosts,omitempty" doc:"Hosts whose keys the backup does not know: weftctl restore accept."`
	// Unknown are parts whose names are reserved until they are applied again.
	Unknown []RecoveryPart `json:"unknown,omitempty" doc:"Networks and Guests that run on hosts and that the backup does not know. What they have is reserved; an object of the same kind and name takes it over."`
	// Conflicts are sentences for the operator.
	Conflicts []string `json:"conflicts,omitempty" doc:"Where hosts contradict each other or the backup, and what was decided."`
}

// RecoveryHost is a host whose key is not in the backup.
type RecoveryHost struct {
	Name    string    `json:"name" doc:"Name of its Machine."`
	UID     string    `json:"uid" doc:"UID of its Machine."`
	Key     string    `json:"key,omitzero" doc:"SHA-256 of its public key; empty for one that other hosts name as their peer and that has not come yet."`
	Address string    `json:"address,omitzero" doc:"Address that it came from."`
	Issued  time.Time `json:"issued,omitzero" doc:"When its certificate was."`
	Seen    time.Time `json:"seen,omitzero" doc:"When it last came."`
}

// RecoveryPart is a Network or Guest that only hosts know.
type RecoveryPart struct {
	Kind      string       `json:"kind" enum:"Network,Guest" doc:"Network or Guest."`
	Name      string       `json:"name" doc:"Name of the object."`
	UID       string       `json:"uid" doc:"UID of the object."`
	VNI       uint32       `json:"vni,omitzero" doc:"A Network's."`
	Network   string       `json:"network,omitzero" doc:"A Guest's."`
	Host      string       `json:"host,omitzero" doc:"That a Guest is on."`
	HostUID   string       `json:"hostUID,omitzero" doc:"UID of that host's Machine."`
	Addresses []netip.Addr `json:"addresses,omitempty" doc:"Addresses that it has."`
}

// Guest returns an unknown Guest with only its place and addresses.
func (p RecoveryPart) Guest() *Guest {
	g := new(Guest)
	g.SetDefaults()
	g.Metadata.Name, g.Metadata.UID, g.Spec.Network = p.Name, p.UID, p.Network
	g.Status.Host, g.Status.HostUID, g.Status.Addresses = p.Host, p.HostUID, p.Addresses
	return g
}

// Held reports whether the Site was restored and still waits for its hosts.
func (s *Site) Held() bool {
	return s != nil && s.Status.Recovery != nil && s.Status.Recovery.Held
}

// CondAccounted: it is known what a Machine of a restored Site runs.
const CondAccounted = "Accounted"

// Reasons of CondAccounted.
const (
	AccountedWaiting = "Waiting"    // for its host's report
	AccountedNewKey  = "NewKey"     // its host has a key that is not in the backup: the operator must accept it
	AccountedReport  = "Reported"   // its host has reported
	AccountedOff     = "PoweredOff" // its BMC says that it has no power
	AccountedGone    = "WrittenOff" // the operator has confirmed that nothing of it is left
)

// RecoveryStatus is the state of a restored Site: GET /v1/recovery.
type RecoveryStatus struct {
	Recovery *Recovery         `json:"recovery,omitempty" doc:"None where nothing was restored, or all is done."`
	Epoch    int64             `json:"epoch"`
	Machines []RecoveryMachine `json:"machines,omitempty"`
}

// RecoveryMachine is a Machine of a restored Site.
type RecoveryMachine struct {
	Name    string `json:"name"`
	Done    bool   `json:"done"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Recount lists what a host has, on request of a restored bootd: it may be more
// than the backup contains. A host lists at most as many as bootd accepts.
type Recount struct {
	ID         string         `json:"id" doc:"Of the question."`
	Networks   []HeldNetwork  `json:"networks,omitempty"`
	Guests     []HeldGuest    `json:"guests,omitempty"`
	Loopbacks  []netip.Addr   `json:"loopbacks,omitempty" doc:"Addresses that the Zone has given to the host."`
	Reflector  bool           `json:"reflector,omitzero" doc:"It reflects routes."`
	Hosts      []string       `json:"hosts,omitempty" doc:"Other hosts that it knows of."`
	Flannelds  []HeldFlanneld `json:"flannelds,omitempty"`
	Incomplete bool           `json:"incomplete,omitzero" doc:"More frames follow."`
}

// HeldNetwork is a Network's part as stored by a host.
type HeldNetwork struct {
	Name   string       `json:"name"`
	UID    string       `json:"uid"`
	VNI    uint32       `json:"vni"`
	Lease  netip.Prefix `json:"lease"`
	Lease6 netip.Prefix `json:"lease6,omitzero"`
}

// HeldGuest is a Guest's part as stored by a host.
type HeldGuest struct {
	Name      string         `json:"name"`
	UID       string         `json:"uid"`
	Network   string         `json:"network,omitzero"`
	Addresses []netip.Addr   `json:"addresses,omitempty"`
	State     GuestState     `json:"state,omitzero" doc:"As the host sees it; empty when it has not looked."`
	Gone      bool           `json:"gone,omitzero" doc:"Its HostSpec no longer names it: it is Orphaned."`
	Transfer  *GuestTransfer `json:"transfer,omitempty" doc:"The host's share in a move."`
}

// HeldFlanneld is the lease of a stock flanneld that a host has as a peer.
type HeldFlanneld struct {
	Network string       `json:"network"`
	Lease   netip.Prefix `json:"lease"`
	VTEP    netip.Addr   `json:"vtep"`
	MAC     MAC          `json:"mac"`
}

// RecountRequest requests a Recount from a host.
type RecountRequest struct {
	ID string `json:"id"`
}

// Recovery returns the state of the Site after a restore.
func (c *Client) Recovery(ctx context.Context) (*RecoveryStatus, error) {
	out := new(RecoveryStatus)
	return out, c.call(ctx, http.MethodGet, "/v1/recovery", nil, out)
}

// AcceptHost accepts the key of a host, after a restore.
func (c *Client) AcceptHost(ctx context.Context, host string) error {
	return c.call(ctx, http.MethodPost, "/v1/recovery/accept/"+url.PathEscape(host), nil, nil)
}

// WriteOffHost stops waiting for a host, after a restore.
func (c *Client) WriteOffHost(ctx context.Context, host string) error {
	return c.call(ctx, http.MethodPost, "/v1/recovery/write-off/"+url.PathEscape(host), nil, nil)
}

// FinishRecovery ends the recovery.
func (c *Client) FinishRecovery(ctx context.Context, forget bool) error {
	return c.call(ctx, http.MethodPost, fmt.Sprintf("/v1/recovery/finish?forget=%t", forget), nil, nil)
}
