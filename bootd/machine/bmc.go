package machine

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/site"
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
	Health(context.Context) (hardware.Health, error)
	ResetBMC(context.Context) error
	Identify(context.Context, bool) error
	AssetTag(context.Context) (string, error)
	SetAssetTag(context.Context, string) error
	TrustAtBoot(context.Context, *x509.Certificate) error
	InsertMedia(context.Context, hardware.Media) error
	EjectMedia(ctx context.Context, image string) error
	Fingerprint() string
}

// Use has call carried out with a BMC when it is its turn, logged in.
type Use func(ctx context.Context, e hardware.Endpoint, what string, call func(context.Context, BMC) error) error

// bmcs is the one place in which BMCs are called.
type bmcs struct {
	control.Env
	use  Use
	tags tags
	urls urls
	// holds keeps BMCs from being asked too often after an error.
	holds *holds
}

// ask asks the Machine's BMC what the action says. What
// the BMC said of itself is written into conditions either way; the error is
// a *fault then. What only a person can mend is not tried again until something
// changes or some minutes pass: a wrong password must not lock the account.
func (b bmcs) ask(ctx context.Context, m *api.Machine, a action) (answer, error) {
	c := b.call(m, a) // it is made with it: it may change meanwhile
	ctx, cancel := context.WithTimeout(ctx, a.longest())
	defer cancel()
	met, is, err := b.session(ctx, m, a)
	for _, d := range met.detours {
		if d.Command {
			b.Event(m, api.Normal, "BMCFallback", fmt.Sprintf("%s was done over %s; Redfish: %s", d.Verb, d.Protocol, d.Why))
		}
	}
	if err == nil {
		b.holds.answered(c, false)
		return is, b.well(ctx, m, met, a.doing())
	}
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return is, err
	}
	err = TrustAdvice(m, err)
	f := b.holds.fail(c, met.entered, err)
	if !f.refused {
		err = b.failed(ctx, m, f)
	} else if err = b.well(ctx, m, met, ""); err == nil {
		b.holds.answered(c, true)
		err = b.refused(ctx, m, a, f)
	}
	if err != nil {
		return is, errors.Join(f, err)
	}
	return is, f
}

// TrustAdvice adds to an error of a BMC that was refused for what it presents what
// a person does about it.
func TrustAdvice(m *api.Machine, err error) error {
	if !hardware.Distrusted(err) {
		return err
	}
	return fmt.Errorf("%w; compare it with the BMC itself: weftctl bmc trust %s shows it, and pins it when it is confirmed", err, m.Metadata.Name)
}

// failed writes down why the BMC could not be used.
func (b bmcs) failed(ctx context.Context, m *api.Machine, f *fault) error {
	if old := m.Status.Conditions.Get(api.CondBMC); old == nil || old.Reason != f.reason {
		b.Event(m, api.Warning, "BMC"+f.reason, f.Error())
		b.Log.Warn("BMC", "machine", m.Metadata.Name, "doing", f.doing, "error", f.err)
	}
	return mutate(ctx, b.Env, m, func(m *api.Machine) {
		m.Status.Conditions.Set(time.Now(), api.CondBMC, api.False, f.reason, f.Error())
		switch f.reason {
		case "Unreachable":
			m.Status.Power = string(hardware.PowerUnknown)
		case "PasswordChangeRequired":
			m.Status.Conditions.Set(time.Now(), api.CondPassword, api.True, f.reason, passwordRemedy(m, f.err))
		}
	})
}

// passwordRemedy says what a person does about a password that has to be changed.
func passwordRemedy(m *api.Machine, err error) string {
	return fmt.Sprintf("%s. Set a new password on the BMC's web page (%s), write it into Secret %s, and bootd logs in again at once", err, m.Spec.BMC.Address, m.Spec.BMC.Credentials)
}

// refused writes down what a BMC that is well does not do. What a person has asked for ends with those words instead.
func (b bmcs) refused(ctx context.Context, m *api.Machine, a action, f *fault) error {
	if a.request != nil && a.request.Verb != api.VerbReprovision {
		return nil
	}
	if old := m.Status.Conditions.Get(api.CondObeys); old == nil || old.Message != f.Error() {
		b.Event(m, api.Warning, "BMC"+f.reason, f.Error())
		b.Log.Warn("BMC", "machine", m.Metadata.Name, "doing", f.doing, "error", f.err)
	}
	return mutate(ctx, b.Env, m, func(m *api.Machine) {
		m.Status.Conditions.Set(time.Now(), api.CondObeys, api.False, f.reason, f.Error())
	})
}

// held is what keeps an action back from the Machine's BMC.
func (b bmcs) held(m *api.Machine, a action) hold {
	if m.Spec.BMC == nil {
		return hold{}
	}
	return b.holds.of(b.call(m, a))
}

// call is an action with what it is asked with: a change of that tries again at
// once.
func (b bmcs) call(m *api.Machine, a action) call {
	s, _ := store.Cached[api.Secret](b.Cache, m.Spec.BMC.Credentials)
	version := ""
	if s != nil {
		version = s.Metadata.ResourceVersion
	}
	pins := m.BMCPins()
	return call{machine: m.Metadata.Name, bmc: m.Spec.BMC.Address + " " + m.Spec.BMC.Credentials, action: a,
		key:   fmt.Sprint(m.Metadata.UID, m.Metadata.Generation, version),
		login: fmt.Sprint(version, pins.Certificate, pins.HostKey, site.Spec(b.Cache).Trust.BMC)}
}

// contact is what is learned of a BMC in one call, whatever it was for.
type contact struct {
	entered     bool
	fingerprint string            // of the certificate that it presented; empty over IPMI
	detours     []hardware.Detour // what went by another protocol than Redfish
}

// session waits for the BMC aside: it may be silent, and other Machines' are not.
func (b bmcs) session(ctx context.Context, m *api.Machine, a action) (met contact, is answer, err error) {
	endpoint, err := Endpoint(ctx, b.Store, b.Cache, m)
	if err != nil {
		return met, is, err
	}
	ctx = hardware.WithDetours(ctx, func(d hardware.Detour) { met.detours = append(met.detours, d) })
	aside := control.Aside
	if a.reading {
		aside = func(_ context.Context, slow func() error) error { return slow() } // its workers are what bounds it
	}
	err = aside(ctx, func() error {
		return b.use(ctx, endpoint, a.doing(), func(ctx context.Context, bmc BMC) (err error) {
			met.entered, met.fingerprint = true, bmc.Fingerprint()
			is, err = session{BMC: bmc, machine: m, tags: b.tags, urls: b.urls, secure: Required(b.Cache, m).Level == api.TrustBMC, note: func(ctx context.Context, c api.PowerCommand) (bool, error) { return b.note(ctx, m, c) }}.ask(ctx, a)
			return err
		})
	})
	return met, is, err
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

// ipmiOf is how IPMI sessions are opened; its defaults are the driver's.
func ipmiOf(i *api.BMCIPMI) hardware.IPMI {
	if i == nil {
		return hardware.IPMI{}
	}
	e := hardware.IPMI{Privilege: i.Privilege}
	if i.CipherSuite != nil {
		e.CipherSuite = *i.CipherSuite
	}
	return e
}

// Endpoint is how the Machine's BMC is reached, password included.
func Endpoint(ctx context.Context, s *store.Store, c *store.Cache, m *api.Machine) (hardware.Endpoint, error) {
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
	pins := m.BMCPins()
	return hardware.Endpoint{
		Address: b.Address, Protocol: b.Protocol, Fallback: b.Fallback, IPMI: ipmiOf(b.IPMI), Username: secret["username"], Password: secret["password"], SystemID: b.System,
		Fingerprint: string(pins.Certificate), HostKey: string(pins.HostKey), PinnedOnly: site.Spec(c).Trust.BMC == api.BMCTrustPerson,
	}, nil
}

// well records that the BMC answered; it writes only when that is news.
// done is what it has carried out.
func (b bmcs) well(ctx context.Context, m *api.Machine, met contact, done string) error {
	address := m.Spec.BMC.Address // the Machine may have another BMC by now
	obeys := func(m *api.Machine) bool {
		c := m.Status.Conditions.Get(api.CondObeys)
		return c != nil && done != "" && strings.HasPrefix(c.Message, done+": ")
	}
	if !obeys(m) && m.Status.Conditions.Is(api.CondBMC) && m.Status.BMC.Fingerprint == met.fingerprint && time.Since(m.Status.BMC.LastContact) < time.Minute && saysDetour(m) == (len(met.detours) > 0) {
		return nil
	}
	return mutate(ctx, b.Env, m, func(m *api.Machine) {
		if obeys(m) {
			m.Status.Conditions.Remove(api.CondObeys)
		}
		m.Status.Conditions.Remove(api.CondPassword)
		m.LearnBMC(address, api.Fingerprint(met.fingerprint), "", time.Now())
		m.Status.Conditions.Set(time.Now(), api.CondBMC, api.True, "Reachable", "it answers and takes the password"+byDetour(met.detours)+pinnedBy(m))
	})
}

// overIPMI is in the message of a BMC's condition while it answers in another protocol than Redfish.
const overIPMI = "; over IPMI, for Redfish "

// byDetour says what the last call did not get from Redfish.
func byDetour(detours []hardware.Detour) string {
	if len(detours) == 0 {
		return ""
	}
	last := detours[len(detours)-1]
	return fmt.Sprintf("%sdid not %s: %s", overIPMI, last.Verb, last.Why)
}

func saysDetour(m *api.Machine) bool {
	c := m.Status.Conditions.Get(api.CondBMC)
	return c != nil && strings.Contains(c.Message, overIPMI)
}

// pinnedBy says who trusts the BMC's certificate, where the spec does not.
func pinnedBy(m *api.Machine) string {
	switch pins := m.BMCPins(); pins.By {
	case api.PinnedBySpec, "":
		return ""
	case api.PinnedByFirstContact:
		return fmt.Sprintf("; its certificate was pinned at the first contact (weftctl bmc trust %s shows it, to be compared)", m.Metadata.Name)
	default:
		return "; " + pins.By + " trusts its certificate"
	}
}
