package fallback

import (
	"context"
	"crypto/x509"

	"github.com/rackweft/rackweft/hardware"
)

// BMC is the one server behind a Service.
type BMC struct{ service *Service }

var _ hardware.BMC = (*BMC)(nil)

// Identity tells who answers, in the words of the way that does.
func (b *BMC) Identity(ctx context.Context) (hardware.Identity, error) {
	return read(ctx, b, "read identity", hardware.BMC.Identity)
}

// Fingerprint is that of the Service.
func (b *BMC) Fingerprint() string { return b.service.Fingerprint() }

// PowerState reads the power state.
func (b *BMC) PowerState(ctx context.Context) (hardware.PowerState, error) {
	return read(ctx, b, "read power state", hardware.BMC.PowerState)
}

// PowerOn returns once the server is seen on, or is on already.
func (b *BMC) PowerOn(ctx context.Context) error {
	return b.service.do(ctx, "power on", harmless, func(o hardware.BMC) error { return o.PowerOn(ctx) })
}

// PowerOff takes the power away.
func (b *BMC) PowerOff(ctx context.Context) error {
	return b.service.do(ctx, "power off", harmless, func(o hardware.BMC) error { return o.PowerOff(ctx) })
}

// ForceRestart resets the server, by one way only where the other may have done it.
func (b *BMC) ForceRestart(ctx context.Context) error {
	return b.service.do(ctx, "restart", once, func(o hardware.BMC) error { return o.ForceRestart(ctx) })
}

// GracefulShutdown presses the power button, by one way only where the other may have done it.
func (b *BMC) GracefulShutdown(ctx context.Context) error {
	return b.service.do(ctx, "shut down", once, func(o hardware.BMC) error { return o.GracefulShutdown(ctx) })
}

// SetBootOnce sets what the next boot uses, and reads it back.
func (b *BMC) SetBootOnce(ctx context.Context, boot hardware.Boot) error {
	return b.service.do(ctx, "set next boot", harmless, func(o hardware.BMC) error { return o.SetBootOnce(ctx, boot) })
}

// LastReset tells what the BMC knows about the server's last reset.
func (b *BMC) LastReset(ctx context.Context) (hardware.ResetEvidence, error) {
	return read(ctx, b, "read last reset", hardware.BMC.LastReset)
}

// Health reads how the server is.
func (b *BMC) Health(ctx context.Context) (hardware.Health, error) {
	return read(ctx, b, "read health", hardware.BMC.Health)
}

// Subscribe has the BMC send its events to a destination.
func (b *BMC) Subscribe(ctx context.Context, s hardware.Subscription) error {
	return b.service.do(ctx, "subscribe to events", harmless, func(o hardware.BMC) error { return o.Subscribe(ctx, s) })
}

// Unsubscribe ends the subscriptions with this context.
func (b *BMC) Unsubscribe(ctx context.Context, of string) error {
	return b.service.do(ctx, "end the subscription to events", harmless, func(o hardware.BMC) error { return o.Unsubscribe(ctx, of) })
}

// ResetBMC restarts the BMC, by one way only where the other may have done it.
func (b *BMC) ResetBMC(ctx context.Context) error {
	return b.service.do(ctx, "restart the BMC", once, func(o hardware.BMC) error { return o.ResetBMC(ctx) })
}

// AssetTag reads the asset tag.
func (b *BMC) AssetTag(ctx context.Context) (string, error) {
	return read(ctx, b, "read the asset tag", hardware.BMC.AssetTag)
}

// SetAssetTag writes it.
func (b *BMC) SetAssetTag(ctx context.Context, tag string) error {
	return b.service.do(ctx, "write the asset tag", harmless, func(o hardware.BMC) error { return o.SetAssetTag(ctx, tag) })
}

// TrustAtBoot has the firmware trust a CA at HTTPS boot. Only Redfish has a place for it.
func (b *BMC) TrustAtBoot(ctx context.Context, ca *x509.Certificate) error {
	return b.service.do(ctx, "have a CA trusted at HTTPS boot", harmless, func(o hardware.BMC) error { return o.TrustAtBoot(ctx, ca) })
}

// InsertMedia has an image in the virtual CD drive. Only Redfish has one.
func (b *BMC) InsertMedia(ctx context.Context, media hardware.Media) error {
	return b.service.do(ctx, "insert virtual media", harmless, func(o hardware.BMC) error { return o.InsertMedia(ctx, media) })
}

// EjectMedia empties the drive.
func (b *BMC) EjectMedia(ctx context.Context, image string) error {
	return b.service.do(ctx, "eject virtual media", harmless, func(o hardware.BMC) error { return o.EjectMedia(ctx, image) })
}

// Inventory reads what the server is made of. It is read over Redfish only: what little IPMI tells is not to take its place.
func (b *BMC) Inventory(ctx context.Context) (inventory hardware.Inventory, err error) {
	_, err = ask(ctx, &b.service.redfish, func(o hardware.BMC) error {
		inventory, err = o.Inventory(ctx)
		return err
	})
	return inventory, err
}

// Identify switches the locator light.
func (b *BMC) Identify(ctx context.Context, on bool) error {
	return b.service.do(ctx, "switch the locator light", harmless, func(o hardware.BMC) error { return o.Identify(ctx, on) })
}

// Consoles are those that Redfish tells of, and serial over LAN after them.
func (b *BMC) Consoles(ctx context.Context) ([]hardware.ConsoleWay, error) {
	var ways []hardware.ConsoleWay
	collect := func(o hardware.BMC) error {
		more, err := o.Consoles(ctx)
		ways = append(ways, more...)
		return err
	}
	_, err := ask(ctx, &b.service.redfish, collect)
	if err != nil && !leadsFurther(err, false) {
		return nil, err
	}
	if _, other := ask(ctx, &b.service.ipmi, collect); other != nil && err != nil {
		return nil, both(err, other)
	}
	return ways, nil // of the two one is enough
}

// read asks for a value.
func read[T any](ctx context.Context, b *BMC, what string, get func(hardware.BMC, context.Context) (T, error)) (value T, err error) {
	err = b.service.do(ctx, what, reading, func(o hardware.BMC) error {
		value, err = get(o, ctx)
		return err
	})
	return value, err
}
