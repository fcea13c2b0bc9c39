package machine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
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
}

// Use has call carried out with a BMC when it is its turn, logged in.
type Use func(ctx context.Context, e hardware.Endpoint, what string, call func(context.Context, BMC) error) error

// bmcs is the one place in which BMCs are called.
type bmcs struct {
	control.Env
	use  Use
	tags tags
	// holds keeps BMCs from being asked too often after an error.
	holds *holds
}

// ask asks the Machine's BMC what the action says. What
// the BMC said of itself is written into conditions either way; the error is
// errHeld then, and comes with when to try again. What only a person can mend is
// not tried again until something changes or some minutes pass: a wrong password
// must not lock the account.
func (b bmcs) ask(ctx context.Context, m *api.Machine, a action) (answer, time.Duration, error) {
	key := b.key(m) // the call is made with it: it may change meanwhile
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	fingerprint, is, err := b.session(ctx, m, a)
	if err == nil {
		b.holds.forget(m.Metadata.Name)
		return is, 0, b.well(ctx, m, fingerprint)
	}
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return is, 0, err
	}
	reason, wait := b.holds.fail(m.Metadata.Name, key, err)
	return is, wait, errors.Join(errHeld, b.failed(ctx, m, reason, a.doing(), err))
}

// failed writes down why the BMC could not be used.
func (b bmcs) failed(ctx context.Context, m *api.Machine, reason, doing string, err error) error {
	message := fmt.Sprintf("%s: %s", doing, err)
	if old := m.Status.Conditions.Get(api.CondBMC); old == nil || old.Reason != reason {
		b.Event(m, api.Warning, "BMC"+reason, message)
		b.Log.Warn("BMC", "machine", m.Metadata.Name, "doing", doing, "error", err)
	}
	return mutate(ctx, b.Env, m, func(m *api.Machine) {
		m.Status.Conditions.Set(time.Now(), api.CondBMC, api.False, reason, message)
		if reason == "Unreachable" {
			m.Status.Power = string(hardware.PowerUnknown)
		}
	})
}

// errHeld says that the BMC could not be used; why stands in a condition.
var errHeld = errors.New("the BMC could not be used")

// heldUntil is until when the Machine's BMC is left alone.
func (b bmcs) heldUntil(m *api.Machine) time.Time {
	if m.Spec.BMC == nil {
		return time.Time{}
	}
	return b.holds.until(m.Metadata.Name, b.key(m))
}

// key is what a call of the BMC is made with: a change tries again at once.
func (b bmcs) key(m *api.Machine) string {
	s, _ := store.Cached[api.Secret](b.Cache, m.Spec.BMC.Credentials)
	version := ""
	if s != nil {
		version = s.Metadata.ResourceVersion
	}
	return fmt.Sprint(m.Metadata.UID, m.Metadata.Generation, version)
}

// session waits for the BMC aside: it may be silent, and other Machines' are not.
func (b bmcs) session(ctx context.Context, m *api.Machine, a action) (fingerprint string, is answer, err error) {
	endpoint, err := Endpoint(ctx, b.Store, m)
	if err != nil {
		return "", is, err
	}
	err = control.Aside(ctx, func() error {
		return b.use(ctx, endpoint, a.doing(), func(ctx context.Context, bmc BMC) (err error) {
			fingerprint = bmc.Fingerprint()
			is, err = session{BMC: bmc, machine: m, tags: b.tags, note: func(ctx context.Context, c api.PowerCommand) (bool, error) { return b.note(ctx, m, c) }}.ask(ctx, a)
			return err
		})
	})
	return fingerprint, is, err
}

// note writes a power command into the attempt that is open.
func (b bmcs) note(ctx context.Context, m *api.Machine, c api.PowerCommand) (open bool, err error) {
	err = mutate(ctx, b.Env, m, func(fresh *api.Machine) {
		if open = fresh.Status.Attempt.Open() && attemptID(fresh) == attemptID(m); open {
			fresh.Status.Attempt.Command = &c
		}
	})
	return open, err
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
	return hardware.Endpoint{Address: b.Address, Protocol: b.Protocol, Username: secret["username"], Password: secret["password"], Fingerprint: fingerprint, SystemID: b.System}, nil
}

// well records that the BMC answered; it writes only when that is news.
func (b bmcs) well(ctx context.Context, m *api.Machine, fingerprint string) error {
	if m.Status.Conditions.Is(api.CondBMC) && m.Status.BMC.Fingerprint == fingerprint && time.Since(m.Status.BMC.LastContact) < time.Minute {
		return nil
	}
	return mutate(ctx, b.Env, m, func(m *api.Machine) {
		message := "it answers and takes the password"
		if m.Spec.BMC.TLS.Fingerprint == "" {
			message += "; its certificate was pinned at the first contact (spec.bmc.tls.fingerprint pins it for good)"
		}
		m.Status.Conditions.Set(time.Now(), api.CondBMC, api.True, "Reachable", message)
		m.Status.BMC = api.BMCStatus{Fingerprint: fingerprint, LearnedFrom: m.Spec.BMC.Address, LastContact: time.Now().UTC()}
	})
}
