package machine

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/hardware"
)

// urls gives boot URLs to BMCs, for boots that must reach trust level bmc: that of a boot loader, which the firmware fetches,
// or else that of an image for the virtual CD drive, which the BMC fetches.
type urls struct {
	control.Env
	of, media func(m *api.Machine) (string, error)
	ca        *x509.Certificate
}

// give has the BMC boot the Machine from its attempt's URL, once. That it has the URL is written first: whatever happens to
// bootd then, it is known what to take back. False when another attempt has begun meanwhile.
func (u urls) give(ctx context.Context, b BMC, m *api.Machine) (otherwise string, open bool, err error) {
	otherwise, open, err = u.giveURL(ctx, b, m)
	if !open || !unable(err) {
		return otherwise, open, err
	}
	otherwise, open, mediaErr := u.giveMedia(ctx, b, m)
	if errors.Is(mediaErr, hardware.ErrUnsupported) {
		mediaErr = fmt.Errorf("%w; nor is it booted from virtual media: %w", err, mediaErr)
	}
	return otherwise, open, mediaErr
}

func (u urls) giveURL(ctx context.Context, b BMC, m *api.Machine) (otherwise string, open bool, err error) {
	url, err := u.of(m)
	if err != nil {
		return "", true, fmt.Errorf("%w: no boot URL for it: %w", hardware.ErrUnsupported, err)
	}
	if open, err = u.note(ctx, m, api.GivenBootURL{Attempt: attemptID(m)}); err != nil || !open {
		return "", false, err
	}
	if err := b.TrustAtBoot(ctx, u.ca); unable(err) {
		otherwise = ", with a firmware that must trust the Site's CA already: its BMC enrolls none"
	} else if err != nil {
		return "", true, err
	}
	return otherwise, true, b.SetBootOnce(ctx, hardware.Boot{Target: hardware.BootHTTP, HTTPURL: url})
}

// giveMedia has the BMC put the attempt's image into its virtual CD drive. Its boot entry is for UEFI.
func (u urls) giveMedia(ctx context.Context, b BMC, m *api.Machine) (otherwise string, open bool, err error) {
	boot := hardware.Boot{Target: hardware.BootMedia, Mode: bootTarget(m).Mode}
	if boot.Mode == hardware.ModeLegacy {
		return "", true, fmt.Errorf("%w: the image boots with UEFI, and spec.boot.firmware is bios", hardware.ErrUnsupported)
	}
	url, err := u.media(m)
	if err != nil {
		return "", true, fmt.Errorf("%w: no image for it: %w", hardware.ErrUnsupported, err)
	}
	if open, err = u.note(ctx, m, api.GivenBootURL{Attempt: attemptID(m), Media: true}); err != nil || !open {
		return "", false, err
	}
	otherwise = ", from virtual media"
	err = b.InsertMedia(ctx, hardware.Media{Image: url, CA: u.ca})
	if unable(err) {
		otherwise += ", which its BMC fetches without a look at bootd's certificate"
		err = b.InsertMedia(ctx, hardware.Media{Image: url})
	}
	if err != nil {
		return "", true, err
	}
	err = b.SetBootOnce(ctx, boot)
	if errors.Is(err, hardware.ErrModeUntold) {
		boot.Mode = ""
		err = b.SetBootOnce(ctx, boot)
	}
	return otherwise, true, err
}

// note writes down which URL the BMC is about to have.
func (u urls) note(ctx context.Context, m *api.Machine, given api.GivenBootURL) (open bool, err error) {
	err = mutate(ctx, u.Env, m, func(fresh *api.Machine) {
		if open = fresh.Status.Attempt.Open() && attemptID(fresh) == attemptID(m); open {
			fresh.Status.BootURL = &given
		}
	})
	return open, err
}

// takeBack has the BMC forget what it was given in an attempt, which may not be the Machine's newest. What a person has put
// into the drive since stays there.
func (u urls) takeBack(ctx context.Context, b BMC, m *api.Machine) error {
	err := b.SetBootOnce(ctx, hardware.Boot{Target: hardware.BootNone})
	given := m.Status.BootURL
	if given == nil || !given.Media || err != nil && !unable(err) {
		return err
	}
	of := *m
	of.Status.Attempt = &api.BootAttempt{ID: given.Attempt}
	url, urlErr := u.media(&of)
	if urlErr != nil { // and will not be known later
		return fmt.Errorf("%w: the URL of its image is not known any more: %w", hardware.ErrUnsupported, urlErr)
	}
	if ejected := b.EjectMedia(ctx, url); ejected != nil {
		return ejected
	}
	return err
}

// unable reports whether a BMC that is well does not do what was asked.
func unable(err error) bool {
	return errors.Is(err, hardware.ErrUnsupported) || errors.Is(err, hardware.ErrForbidden)
}

// urlDue reports whether a boot URL has to be taken back. Until Ignition has its pointer, an attempt's boot may start over,
// and an override that is taken back might be that of the attempt.
func urlDue(m *api.Machine) bool {
	a := m.Status.Attempt
	return m.Status.BootURL != nil && !(a.Open() && !a.Reached(api.StagePointer))
}

// takeURLBack has the BMC forget a boot URL that is spent.
func (j judge) takeURLBack() action {
	if j.machine.Spec.BMC == nil {
		return action{do: doURLBack}
	}
	return j.ask(action{ask: askURLBack})
}

// urlRefused fails an attempt whose level cannot be reached: its BMC takes no boot URL.
func (x answered) urlRefused() action {
	message := fmt.Sprintf("trust level bmc is required (by %s), and the BMC takes no boot URL: %s; require another level (spec.trust.minimum; lowering it needs an admin)",
		x.required(x.machine).Of, x.is.url.refused)
	return action{do: doNoURL, answer: x.is, reason: "LevelNotReached", message: message, event: event{api.Warning, "LevelNotReached", message}}
}

// urlIsBack ends what was noted of a boot URL, be it that its BMC keeps it: it is of no use any more.
func (x answered) urlIsBack() action {
	d := x.decision("boot URL", "taken back", "it is spent")
	if x.is.url.refused != nil {
		d.Answer, d.Reason = "left", "it is spent, and the BMC does not take it back: "+x.is.url.refused.Error()
	}
	d.Attempt = x.machine.Status.BootURL.Attempt
	return action{do: doURLBack, decision: d}
}
