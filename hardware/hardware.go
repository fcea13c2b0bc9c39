// Package hardware is the vocabulary of a server's management controller (BMC): where it is, what it is asked for and what
// it answers, whatever protocol it speaks. The drivers lie below it.
package hardware

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"
)

// Endpoint says where a BMC is and how to enter.
type Endpoint struct {
	Address  string // https://host[:port], or ipmi://host[:port]
	Protocol string // redfish or ipmi; empty means redfish
	Fallback string // ipmi or empty: what is spoken where the protocol does not get there
	IPMI     IPMI
	Username string
	Password string
	// Fingerprint pins the BMC's leaf certificate: sha256:<hex of its DER's SHA-256>. Empty means that whatever
	// is presented first is taken, and pinned while this BMC is open: see BMC.Fingerprint.
	Fingerprint string
	// HostKey pins the key of the BMC's SSH server, as ssh-keygen -l prints it: SHA256:<base64>. Empty means that whatever
	// is presented is taken: see ShellConfig.
	HostKey string
	// PinnedOnly refuses, with an UntrustedError, what presents a certificate or a host key while none is pinned.
	PinnedOnly bool
	SystemID   string // which ComputerSystem, by Id; needed only where the BMC has several
	// ConnectTimeout is how long it may take to reach it. Default: 10 seconds.
	ConnectTimeout time.Duration
}

// IPMI says how IPMI sessions are opened.
type IPMI struct {
	CipherSuite int    // 17 or 3 (IPMI 2.0 §22.15.2); 0 means 17
	Privilege   string // administrator or operator; empty means administrator
}

// PowerState is the power state as the BMC tells it.
type PowerState string

// The power states. The two middle ones are passed through by some BMCs, and never last.
const (
	PowerOn          PowerState = "On"
	PowerOff         PowerState = "Off"
	PowerPoweringOn  PowerState = "PoweringOn"
	PowerPoweringOff PowerState = "PoweringOff"
	PowerUnknown     PowerState = "Unknown"
)

// BootTarget is what the next boot uses.
type BootTarget string

// The boot targets. BootNone takes a pending override back.
const (
	BootPXE   BootTarget = "pxe"
	BootHTTP  BootTarget = "http"
	BootDisk  BootTarget = "disk"
	BootMedia BootTarget = "media" // virtual media
	BootSetup BootTarget = "setup" // the firmware's setup
	BootNone  BootTarget = "none"
)

// BootMode is the firmware mode to boot in; empty leaves it alone.
type BootMode string

// The boot modes.
const (
	ModeUEFI   BootMode = "uefi"
	ModeLegacy BootMode = "legacy"
)

// Boot is a one-time boot override.
type Boot struct {
	Target  BootTarget
	Mode    BootMode
	HTTPURL string // of BootHTTP; empty means that DHCP says it. Without query: several BMCs cut it off.
}

// Check refuses what no BMC can do.
func (b Boot) Check() error {
	switch b.Target {
	case BootPXE, BootHTTP, BootDisk, BootMedia, BootSetup, BootNone:
	default:
		return fmt.Errorf("boot target %q is not known: use pxe, http, disk, media, setup or none", b.Target)
	}
	if b.Mode != "" && b.Mode != ModeUEFI && b.Mode != ModeLegacy {
		return fmt.Errorf("boot mode %q is not known: use uefi or legacy", b.Mode)
	}
	if b.Target == BootHTTP && b.Mode == ModeLegacy {
		return errors.New("HTTP boot is UEFI's: mode legacy cannot do it")
	}
	if b.HTTPURL == "" {
		return nil
	}
	u, err := url.Parse(b.HTTPURL)
	if b.Target != BootHTTP || err != nil || u.Host == "" || strings.ContainsAny(b.HTTPURL, "?&") {
		return errors.New("invalid boot URL: want one with a host, with target http, without ? and & (some BMCs cut there)")
	}
	return nil
}

// Media is an image that a BMC fetches and shows to its server as a CD.
type Media struct {
	Image string // its URL, http or https; it may be a secret, which no error repeats
	// CA is what the BMC checks the certificate of an https server with; nil leaves it to the BMC, and most check nothing.
	CA *x509.Certificate
}

// Check refuses what no BMC fetches.
func (m Media) Check() error {
	u, err := url.Parse(m.Image)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.ContainsAny(m.Image, "?&") {
		return errors.New("invalid image of virtual media: want an http or https URL with a host, without ? and & (some BMCs cut there)")
	}
	if m.CA != nil && u.Scheme != "https" {
		return errors.New("invalid image of virtual media: want an https URL where a CA is given")
	}
	return nil
}

// ResetEvidence is what a BMC knows about the server's last reset, without a judgement. At and Now are both reported by the
// BMC's clock, which may be decades off and may move: that Value is another than it was is better evidence than the age.
type ResetEvidence struct {
	Known  bool // At, Source and Value are reported, and are possible
	At     time.Time
	Now    time.Time // zero when the BMC tells no time
	Source string    // the property that said so
	Value  string    // as the BMC wrote it
	Told   []Trace   // all reported times, the best first, those of wrong clocks included: to compare with earlier reports
	POST   string    // the state of the power-on self-test, of BMCs that tell it (HPE): InPost, FinishedPost and so on
}

// Trace is one property that a reset changes.
type Trace struct {
	Source string
	Value  string // as the BMC wrote it
}

// InPOST reports whether the server is in its power-on self-test. At the end of it, InPostDiscoveryComplete, a server that
// finds nothing to boot waits for hours, which does not count.
func (e ResetEvidence) InPOST() bool { return e.POST == "InPost" }

// Age is the time since the reset by the BMC's own clock, false when it is unknown.
func (e ResetEvidence) Age() (time.Duration, bool) {
	if !e.Known || e.Now.IsZero() {
		return 0, false
	}
	return e.Now.Sub(e.At), true
}

// MaxAssetTag is the longest asset tag in bytes that is sent. Vendors' fields are shorter, HPE's has 32, and refuse by
// themselves; an old tag must go back as it was read.
const MaxAssetTag = 255

// CheckAssetTag refuses what no SMBIOS string carries (DSP0134 §6.1.3).
func CheckAssetTag(tag string) error {
	if len(tag) > MaxAssetTag || strings.ContainsFunc(tag, unicode.IsControl) {
		return fmt.Errorf("invalid asset tag of %d bytes: want at most %d, without control characters", len(tag), MaxAssetTag)
	}
	return nil
}
