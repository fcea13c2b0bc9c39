package api

import (
	"net/netip"
	"slices"
	"time"
)

// TrustLevel is how strongly a boot has proved that it is the Machine's.
type TrustLevel string

// The trust levels.
const (
	TrustMAC     TrustLevel = "mac"     // it uses a known MAC, and an address leased to it
	TrustToken   TrustLevel = "token"   // it holds the token of a BootAttempt that bootd opened
	TrustAddress TrustLevel = "address" // its address was leased at the planned switch port, as reported by a named relay
	TrustNonce   TrustLevel = "nonce"   // it sent the value that this BootAttempt wrote to the system's AssetTag
	TrustBMC     TrustLevel = "bmc"     // it presented, over TLS, the boot URL that its BMC was given
	TrustTPM     TrustLevel = "tpm"     // its TPM has attested the boot
)

// TrustLevels lists the levels from the weakest to the strongest.
func TrustLevels() []TrustLevel {
	return []TrustLevel{TrustMAC, TrustToken, TrustAddress, TrustNonce, TrustBMC, TrustTPM}
}

// Index is the level's place in TrustLevels, or -1.
func (l TrustLevel) Index() int { return slices.Index(TrustLevels(), l) }

// AtLeast reports whether l is other, or stronger.
func (l TrustLevel) AtLeast(other TrustLevel) bool { return l.Index() >= other.Index() }

// Trust is the minimum that a boot must prove.
type Trust struct {
	Minimum TrustLevel `json:"minimum,omitzero" enum:"mac,token,address,nonce,bmc,tpm" doc:"What a boot must have proved before it is given Secrets or a join token. The strictest of Site, Profile and Machine counts; only an admin lowers it. Default: none, the others' count."`
}

// SiteTrust is the Site's Trust, and what follows when a boot was shared.
type SiteTrust struct {
	Minimum TrustLevel `json:"minimum,omitzero" enum:"mac,token,address,nonce,bmc,tpm" doc:"What a boot must have proved before it is given Secrets or a join token. The strictest of Site, Profile and Machine counts. Default: token."`
	Retries *int       `json:"retries,omitempty" minimum:"0" doc:"How many BootAttempts in a row bootd opens by itself after one whose pointer, config or join token was taken twice; then the Machine stays Failed. Default: 2."`
	BMC     BMCTrust   `json:"bmc,omitzero" enum:"firstContact,person" doc:"Who says that a BMC never seen before is the right one. firstContact: the certificate that it shows first is pinned. person: no password is sent before a person has trusted its certificate (weftctl bmc trust, or spec.bmc.tls.fingerprint of the Machine). Default: firstContact."`
}

// BMCTrust says who trusts a BMC that was never seen before.
type BMCTrust string

// The values of BMCTrust.
const (
	BMCTrustFirstContact BMCTrust = "firstContact"
	BMCTrustPerson       BMCTrust = "person"
)

// DefaultTrustRetries is the default of SiteTrust.Retries.
const DefaultTrustRetries = 2

// FailureCause is the kind of failure that ended a BootAttempt, if that makes a
// difference.
type FailureCause string

// CauseSecondTaker ends an attempt in which two clients took what only the
// Machine may have.
const CauseSecondTaker FailureCause = "SecondTaker"

// Taker is a client that took, or requested, something that a BootAttempt gives
// out once.
type Taker struct {
	What    string     `json:"what" enum:"pointer,config,join,script" doc:"What was taken: the script, the pointer, the config or the join token."`
	Address netip.Addr `json:"address,omitzero" doc:"Address that it came from."`
	MAC     MAC        `json:"mac,omitzero" doc:"That the address was leased to."`
	Time    time.Time  `json:"time" doc:"When it took it."`
	Second  bool       `json:"second,omitzero" doc:"Another had taken it before; it was refused."`
}

// MaxTakers bounds the Takers that are recorded per BootAttempt.
const MaxTakers = 16

// NonceState is the state of a BootAttempt's nonce.
type NonceState string

// The states of a nonce.
const (
	NoncePending NonceState = "Pending" // to be written to the AssetTag before the Machine is powered on
	NonceWritten NonceState = "Written" // the BMC has accepted it
	NonceProved  NonceState = "Proved"  // the boot has sent it
	NonceFailed  NonceState = "Failed"  // the BMC does not accept it: the level cannot be reached in this attempt
)

// Nonce is the state of the value that a BootAttempt writes to the system's
// AssetTag. The value is derived from the attempt and not stored.
type Nonce struct {
	State   NonceState `json:"state" enum:"Pending,Written,Proved,Failed" doc:"How far the nonce has come."`
	Message string     `json:"message,omitzero" doc:"Why it was not written or not read back."`
	Time    time.Time  `json:"time,omitzero" doc:"When it came into this state."`
}

// SavedAssetTag is the AssetTag that a nonce has replaced. It is restored when
// the nonce is spent.
type SavedAssetTag struct {
	Value   string `json:"value" doc:"The tag to restore; may be empty."`
	Attempt string `json:"attempt" doc:"The BootAttempt whose nonce took its place."`
}

// GivenBootURL says that the Machine's BMC has the boot URL of a BootAttempt, or may have it. It is taken back when the
// URL is spent.
type GivenBootURL struct {
	Attempt string `json:"attempt" doc:"The BootAttempt whose URL it is."`
	Media   bool   `json:"media,omitzero" doc:"It is the URL of an image in the BMC's virtual CD drive."`
}

// BootPort is the port at which a boot's DHCP request arrived, as reported by a
// relay.
type BootPort struct {
	Address   netip.Addr `json:"address" doc:"That was leased there."`
	Relay     netip.Addr `json:"relay" doc:"That said so, in a packet that it sent to bootd itself."`
	CircuitID string     `json:"circuitID,omitzero" doc:"Of DHCP option 82, as text, or as 0x and hexadecimal digits."`
	RemoteID  string     `json:"remoteID,omitzero" doc:"Of DHCP option 82, as text, or as 0x and hexadecimal digits."`
	Time      time.Time  `json:"time" doc:"When the relay said so."`
}

// trust validates a minimum; an empty one requires nothing.
func (e *FieldErrors) trust(minimum TrustLevel) {
	if minimum == "" {
		return
	}
	var levels []string
	for _, l := range TrustLevels() {
		levels = append(levels, string(l))
	}
	e.oneOf(at("spec", "trust", "minimum"), string(minimum), levels...)
}
