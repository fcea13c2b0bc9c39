package hardware

import (
	"context"
	"crypto/x509"
)

// Service is a BMC that is logged in to. One request at a time is sent to it, whoever asks.
type Service interface {
	// System gives the server with this id, which may be empty where the BMC has one server only. It logs in to nothing.
	System(ctx context.Context, id string) (BMC, error)
	// Spare reports whether the BMC has logins to spare, so that this one may be kept while it is idle.
	Spare() bool
	// Fingerprint is the certificate that the BMC presented, as sha256:<hex>.
	Fingerprint() string
	// Close logs out, even when ctx is over. Calls of its systems fail from then on.
	Close(ctx context.Context) error
}

// BMC is what one server's management controller is asked for, whatever protocol it speaks. Its methods are safe for
// concurrent use and wait for each other.
//
// What a BMC cannot do is a property of that verb: the call fails with *UnsupportedError, and says nothing about the others.
// A call that changes something looks afterwards whether it did. A command that the BMC accepted is not sent again by it.
type BMC interface {
	// Identity tells who answers. It asks the BMC for nothing that is known already.
	Identity(ctx context.Context) (Identity, error)
	// Fingerprint is the certificate that the BMC presented, as sha256:<hex>.
	Fingerprint() string

	PowerState(ctx context.Context) (PowerState, error)
	// PowerOn returns once the server is seen on, or is on already.
	PowerOn(ctx context.Context) error
	// PowerOff takes the power away.
	PowerOff(ctx context.Context) error
	// ForceRestart resets the server without asking its operating system; a server that is off is powered on. Distrust
	// PowerState for the next 15 seconds: several BMCs pass through Off.
	ForceRestart(ctx context.Context) error
	// GracefulShutdown presses the power button. The operating system may take its time, or ignore it.
	GracefulShutdown(ctx context.Context) error

	// SetBootOnce sets what the next boot uses, and reads it back. Call it before the power action.
	SetBootOnce(ctx context.Context, boot Boot) error
	// TrustAtBoot has the firmware trust a CA when it boots over HTTPS, from its next POST. One that it trusts already is not
	// sent again.
	TrustAtBoot(ctx context.Context, ca *x509.Certificate) error
	// LastReset tells what the BMC knows about the server's last reset, without judging its age.
	LastReset(ctx context.Context) (ResetEvidence, error)

	// AssetTag reads the asset tag that the firmware shows in SMBIOS, without trailing blanks.
	AssetTag(ctx context.Context) (string, error)
	// SetAssetTag writes it, at most MaxAssetTag bytes without control characters, and reads it back. The firmware puts it
	// into SMBIOS at its next POST.
	SetAssetTag(ctx context.Context, tag string) error

	// InsertMedia has an image in the server's virtual CD drive, write-protected, and looks afterwards that it is. The BMC
	// fetches it while the server reads it. What is in the drive already is ejected. Boot from it with BootMedia. With a CA, a
	// BMC that cannot check the image's server is ErrUnsupported.
	InsertMedia(ctx context.Context, media Media) error
	// EjectMedia empties the drive. Another image than the one that is named stays in; empty ejects any. An empty drive is no
	// error.
	EjectMedia(ctx context.Context, image string) error

	// Inventory reads what the server is made of. What the BMC refuses to tell is named in Incomplete.
	Inventory(ctx context.Context) (Inventory, error)
	// Health reads how the server is: temperatures, fans, power and power supplies. It takes a handful of requests, and
	// yields between them.
	Health(ctx context.Context) (Health, error)
	// Subscribe has the BMC send its events to a destination. It is asked again for as long as that matters: BMCs forget
	// subscriptions at updates, and end those that they cannot deliver to.
	Subscribe(ctx context.Context, s Subscription) error
	// Unsubscribe ends the subscriptions with this context.
	Unsubscribe(ctx context.Context, of string) error

	// ResetBMC restarts the BMC itself, which does not answer for minutes then and ends all logins; the server runs on.
	ResetBMC(ctx context.Context) error
	// Identify switches the locator light.
	Identify(ctx context.Context, on bool) error
	// Consoles tells the ways to the serial console, the best first, and never none.
	Consoles(ctx context.Context) ([]ConsoleWay, error)
}

// Identity says which server and which BMC this is. What is not reported is empty.
type Identity struct {
	Vendor   string // of the server
	Model    string
	Serial   string
	UUID     string
	System   string // the id that Endpoint.SystemID chooses it by
	BMC      string // model of the BMC
	Firmware string // version of the BMC's firmware
}
