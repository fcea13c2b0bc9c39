// Package redfish is the driver for BMCs that speak Redfish (DSP0266): power, one-time boot, inventory,
// evidence of resets, the locator light and the serial console.
//
// Dial logs in once and keeps the one session; every call of a BMC is serialised, since real controllers
// have few sessions, drop parallel requests and lock accounts. bmclib owns the session: its gofish driver
// logs in and out, over our own HTTP transport, which knows the manners of BMCs (transport.go). What happens
// on the session is plain Redfish that reads as little as it can, as tolerantly as it can; what is particular
// to a vendor is data, in quirks.go.
//
// bmclib 2.3.5's own power, boot and inventory calls are left alone on purpose: gofish refuses a whole system
// for one quoted number in it, so that it could not even be powered on; bmclib picks a system by its Name,
// reports a successful graceful shutdown as failed, swallows what went wrong with a reset, writes back
// whatever boot object it read, ignores the context, and walks firmware, power and thermal trees for an
// inventory.
package redfish

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/internal/wait"
)

// verb is a power action.
type verb int

const (
	verbOn verb = iota
	verbOff
	verbRestart
	verbShutdown
)

// BMC is one server of a BMC that is logged in to. Its methods are safe for concurrent use, and wait for each other and
// for those of the BMC's other servers.
type BMC struct {
	service *Service
	driver  *driver
}

var _ hardware.BMC = (*BMC)(nil)

// Dial logs in to a BMC for the one server that endpoint names; Close logs out. It fails as Connect does.
func Dial(ctx context.Context, endpoint hardware.Endpoint, log *slog.Logger) (*BMC, error) {
	return dial(ctx, endpoint, log, wait.For)
}

func dial(ctx context.Context, endpoint hardware.Endpoint, log *slog.Logger, pause pauser) (*BMC, error) {
	s, err := connect(ctx, endpoint, log, pause, new(Known))
	if err != nil {
		return nil, err
	}
	b, err := s.bmc(ctx, endpoint.SystemID)
	if err != nil {
		return nil, errors.Join(err, s.Close(ctx))
	}
	return b, nil
}

// Close logs the whole BMC out: it is for those that dialled it.
func (b *BMC) Close(ctx context.Context) error { return b.service.Close(ctx) }

// Fingerprint is the certificate that the BMC presented, as sha256:<hex>.
func (b *BMC) Fingerprint() string { return b.service.Fingerprint() }

// Identity tells who answers, as it was read when the system was found.
func (b *BMC) Identity(context.Context) (hardware.Identity, error) { return b.driver.identity, nil }

// PowerState reads the power state.
func (b *BMC) PowerState(ctx context.Context) (state hardware.PowerState, err error) {
	err = b.do(ctx, "read power state", func() error {
		state, err = b.driver.powerState(ctx)
		return err
	})
	return state, err
}

// PowerOn returns once the BMC has accepted it, or the server is on already.
func (b *BMC) PowerOn(ctx context.Context) error {
	return b.do(ctx, "power on", func() error { return b.driver.power(ctx, verbOn) })
}

// PowerOff takes the power away. It returns once the BMC has accepted it, or the server is off already.
func (b *BMC) PowerOff(ctx context.Context) error {
	return b.do(ctx, "power off", func() error { return b.driver.power(ctx, verbOff) })
}

// ForceRestart resets the server without asking its operating system; a server that is off is powered on.
// Distrust PowerState for the next 15 seconds: several BMCs pass through Off.
func (b *BMC) ForceRestart(ctx context.Context) error {
	return b.do(ctx, "restart", func() error { return b.driver.power(ctx, verbRestart) })
}

// GracefulShutdown presses the power button. The operating system may take its time, or ignore it.
func (b *BMC) GracefulShutdown(ctx context.Context) error {
	return b.do(ctx, "shut down", func() error { return b.driver.power(ctx, verbShutdown) })
}

// SetBootOnce sets what the next boot uses, and reads it back. Call it before the power action. It fails with
// ErrUnsupported when the BMC does not offer the target or the mode. Errors do not repeat the URL, which may be a secret.
func (b *BMC) SetBootOnce(ctx context.Context, boot hardware.Boot) error {
	if err := boot.Check(); err != nil {
		return fmt.Errorf("set next boot on BMC %s: %w", b.service.address, err)
	}
	return b.do(ctx, fmt.Sprintf("set next boot to %s", boot.Target), func() error {
		err := b.driver.setBootOnce(ctx, boot)
		if err != nil && boot.HTTPURL != "" {
			return redacted{err, boot.HTTPURL}
		}
		return err
	})
}

// Inventory reads what the server is made of. What the BMC refuses to tell is named in Incomplete.
// Between two requests it lets others use the BMC.
func (b *BMC) Inventory(ctx context.Context) (inventory hardware.Inventory, err error) {
	err = b.do(ctx, "read inventory", func() error {
		inventory, err = b.driver.inventory(ctx)
		return err
	})
	return inventory, err
}

// Health reads what the BMC says of the server's temperatures, fans and power supplies.
func (b *BMC) Health(ctx context.Context) (health hardware.Health, err error) {
	err = b.do(ctx, "read health", func() error {
		health, err = b.driver.health(ctx)
		return err
	})
	return health, err
}

// LastReset reads when the server was last reset.
func (b *BMC) LastReset(ctx context.Context) (evidence hardware.ResetEvidence, err error) {
	err = b.do(ctx, "read last reset", func() error {
		evidence, err = b.driver.lastReset(ctx)
		return err
	})
	return evidence, err
}

// Identify switches the locator light.
func (b *BMC) Identify(ctx context.Context, on bool) error {
	return b.do(ctx, "switch the locator light", func() error { return b.driver.identify(ctx, on) })
}

// Subscribe has the BMC send its events to a destination, once however often it is asked. ErrUnsupported where the BMC takes
// no subscriptions.
func (b *BMC) Subscribe(ctx context.Context, s hardware.Subscription) error {
	if err := s.Check(); err != nil {
		return fmt.Errorf("subscribe to events of BMC %s: %w", b.service.address, err)
	}
	return b.do(ctx, "subscribe to events", func() error { return events{b.driver}.subscribe(ctx, s) })
}

// Unsubscribe ends the subscriptions with this context.
func (b *BMC) Unsubscribe(ctx context.Context, of string) error {
	return b.do(ctx, "end the subscription to events", func() error { return events{b.driver}.unsubscribe(ctx, of) })
}

// ResetBMC restarts the BMC itself, which does not answer for minutes then and ends all logins; the server runs on. It
// fails with ErrNotSeen where nothing came of it within a minute.
func (b *BMC) ResetBMC(ctx context.Context) error {
	return b.do(ctx, "restart the BMC", func() error { return b.driver.resetBMC(ctx) })
}

// AssetTag reads the asset tag that the firmware shows in SMBIOS, without trailing blanks. ErrUnsupported when the BMC
// has no such property.
func (b *BMC) AssetTag(ctx context.Context) (tag string, err error) {
	err = b.do(ctx, "read the asset tag", func() error {
		tag, err = b.driver.assetTag(ctx)
		return err
	})
	return tag, err
}

// SetAssetTag writes the asset tag, at most 255 bytes without control characters, and reads it back. The firmware
// puts it into SMBIOS at its next POST, so call it before the power action. ErrUnsupported when the BMC does not take it.
func (b *BMC) SetAssetTag(ctx context.Context, tag string) error {
	if err := hardware.CheckAssetTag(tag); err != nil {
		return fmt.Errorf("write the asset tag of BMC %s: %w", b.service.address, err)
	}
	return b.do(ctx, "write the asset tag", func() error { return b.driver.setAssetTag(ctx, tag) })
}

// TrustAtBoot has the firmware trust a CA at HTTPS boot, from its next POST. ErrUnsupported when the BMC has no place for it.
func (b *BMC) TrustAtBoot(ctx context.Context, ca *x509.Certificate) error {
	return b.do(ctx, "have a CA trusted at HTTPS boot", func() error { return anchors{b.driver}.trustAtBoot(ctx, ca) })
}

// InsertMedia has an image in the server's virtual CD drive, and looks afterwards that it is. What is in the drive already is
// ejected. ErrUnsupported when the BMC has no such drive, no licence for it, or cannot check the image's server with the CA.
func (b *BMC) InsertMedia(ctx context.Context, media hardware.Media) error {
	if err := media.Check(); err != nil {
		return fmt.Errorf("insert virtual media on BMC %s: %w", b.service.address, err)
	}
	return b.do(ctx, "insert virtual media", func() error { return drives{b.driver}.insertMedia(ctx, media) })
}

// EjectMedia empties the virtual CD drive, unless another image than the one that is named is in it.
func (b *BMC) EjectMedia(ctx context.Context, image string) error {
	return b.do(ctx, "eject virtual media", func() error { return drives{b.driver}.ejectMedia(ctx, image) })
}

// Consoles tells the ways to the serial console: by WebSocket, by SSH.
func (b *BMC) Consoles(ctx context.Context) (ways []hardware.ConsoleWay, err error) {
	err = b.do(ctx, "find the console", func() error {
		ways, err = b.consoles()
		return err
	})
	return ways, err
}

func (b *BMC) do(ctx context.Context, what string, call func() error) error {
	return b.service.do(ctx, what, call)
}
