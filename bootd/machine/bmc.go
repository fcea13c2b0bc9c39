package machine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

// BMC is what the controller asks of a Machine's BMC.
type BMC interface {
	PowerState(context.Context) (hardware.PowerState, error)
	PowerOn(context.Context) error
	PowerOff(context.Context) error
	GracefulShutdown(context.Context) error
	ForceRestart(context.Context) error
	SetBootOnce(context.Context, hardware.Boot) error
	Inventory(context.Context) (hardware.Inventory, error)
	LastReset(context.Context) (hardware.ResetEvidence, error)
	Identify(context.Context, bool) error
	AssetTag(context.Context) (string, error)
	SetAssetTag(context.Context, string) error
	Fingerprint() string
	Close(context.Context) error
}

// withBMC opens the Machine's BMC, calls fn, and closes it. What the BMC said
// of itself is written into conditions either way. An error that only a person
// can mend is not asked again until something changes or some minutes pass:
// a wrong password must not lock the account.
func (c *Controller) withBMC(ctx context.Context, m *api.Machine, doing string, fn func(context.Context, BMC) error) (time.Duration, error) {
	key := c.bmcKey(m)
	if wait := c.holds.left(m.Metadata.Name, key); wait > 0 {
		return wait, errHeld
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	fingerprint, err := c.useBMC(ctx, m, fn)
	if err == nil {
		c.holds.forget(m.Metadata.Name)
		return 0, c.bmcWell(ctx, m, fingerprint)
	}
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return 0, err
	}
	reason, wait := c.holds.fail(m.Metadata.Name, key, err)
	message := fmt.Sprintf("%s: %s", doing, err)
	if old := m.Status.Conditions.Get(api.CondBMC); old == nil || old.Reason != reason {
		c.Event(m, api.Warning, "BMC"+reason, message)
		c.Log.Warn("BMC", "machine", m.Metadata.Name, "doing", doing, "error", err)
	}
	werr := c.mutate(ctx, m, func(m *api.Machine) {
		m.Status.Conditions.Set(time.Now(), api.CondBMC, api.False, reason, message)
		if reason == "Unreachable" {
			m.Status.Power = string(hardware.PowerUnknown)
		}
	})
	return wait, errors.Join(errHeld, werr)
}

// errHeld says that the BMC could not be used; why stands in a condition.
var errHeld = errors.New("the BMC could not be used")

// heldOr turns errHeld, which is already written down, into a plain wait.
func heldOr(wait time.Duration, err error) (time.Duration, error) {
	if err == errHeld || (errors.Is(err, errHeld) && wait > 0) {
		return wait, nil
	}
	return wait, err
}

func (c *Controller) bmcKey(m *api.Machine) string {
	s, _ := store.Cached[api.Secret](c.Cache, m.Spec.BMC.Credentials)
	version := ""
	if s != nil {
		version = s.Metadata.ResourceVersion
	}
	return fmt.Sprint(m.Metadata.UID, m.Metadata.Generation, version)
}

func (c *Controller) useBMC(ctx context.Context, m *api.Machine, fn func(context.Context, BMC) error) (fingerprint string, err error) {
	endpoint, err := Endpoint(ctx, c.Store, m)
	if err != nil {
		return "", err
	}
	bmc, err := c.Dial(ctx, endpoint)
	if err != nil {
		return "", err
	}
	defer func() {
		if cerr := bmc.Close(context.WithoutCancel(ctx)); cerr != nil && err == nil {
			c.Log.Warn("close BMC session", "machine", m.Metadata.Name, "error", cerr)
		}
	}()
	return bmc.Fingerprint(), fn(ctx, bmc)
}

// Endpoint is how the Machine's BMC is reached, password included.
func Endpoint(ctx context.Context, s *store.Store, m *api.Machine) (hardware.Endpoint, error) {
	b := m.Spec.BMC
	secret, err := store.OpenSecret(ctx, s, b.Credentials, api.UseBMC(b.Address))
	var refused *api.NotPermittedError
	if errors.As(err, &refused) {
		return hardware.Endpoint{}, fmt.Errorf("%w: %w", hardware.ErrUnauthorized, err)
	}
	if err != nil {
		return hardware.Endpoint{}, fmt.Errorf("open Secret %s: %w", b.Credentials, err)
	}
	if secret["username"] == "" || secret["password"] == "" {
		return hardware.Endpoint{}, fmt.Errorf("%w: Secret %s needs username and password", hardware.ErrUnauthorized, b.Credentials)
	}
	fingerprint := string(b.TLS.Fingerprint)
	if fingerprint == "" && m.Status.BMC.LearnedFrom == b.Address {
		fingerprint = m.Status.BMC.Fingerprint
	}
	return hardware.Endpoint{Address: b.Address, Protocol: b.Protocol, Username: secret["username"], Password: secret["password"], Fingerprint: fingerprint}, nil
}

// bmcWell records that the BMC answered; it writes only when that is news.
func (c *Controller) bmcWell(ctx context.Context, m *api.Machine, fingerprint string) error {
	if m.Status.Conditions.Is(api.CondBMC) && m.Status.BMC.Fingerprint == fingerprint && time.Since(m.Status.BMC.LastContact) < time.Minute {
		return nil
	}
	return c.mutate(ctx, m, func(m *api.Machine) {
		message := "it answers and takes the password"
		if m.Spec.BMC.TLS.Fingerprint == "" {
			message += "; its certificate was pinned at the first contact (spec.bmc.tls.fingerprint pins it for good)"
		}
		m.Status.Conditions.Set(time.Now(), api.CondBMC, api.True, "Reachable", message)
		m.Status.BMC = api.BMCStatus{Fingerprint: fingerprint, LearnedFrom: m.Spec.BMC.Address, LastContact: time.Now().UTC()}
	})
}
