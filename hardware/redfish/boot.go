package redfish

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// bootSettings is the Boot object of a ComputerSystem, or of its settings object.
type bootSettings struct {
	Target  text    `json:"BootSourceOverrideTarget"`
	Enabled text    `json:"BootSourceOverrideEnabled"`
	Mode    text    `json:"BootSourceOverrideMode"`
	Targets []text  `json:"BootSourceOverrideTarget@Redfish.AllowableValues"`
	HTTPURI *string `json:"HttpBootUri"` // nil: the BMC has no such thing
}

// bootPatch is what is written. Nothing more: BMCs refuse what they do not know.
type bootPatch struct {
	Enabled text   `json:"BootSourceOverrideEnabled"`
	Mode    text   `json:"BootSourceOverrideMode,omitempty"`
	Target  text   `json:"BootSourceOverrideTarget"`
	HTTPURI string `json:"HttpBootUri,omitempty"`
}

// bootResource is where the override is written and read back.
type bootResource struct {
	path string
	etag string
	boot bootSettings
}

// setBootOnce writes the override and reads it back.
func (r *driver) setBootOnce(ctx context.Context, want hardware.Boot) error {
	where, settings, err := r.bootResource(ctx)
	if err != nil {
		return err
	}
	patch, err := r.quirk.bootPatch(want, where.boot)
	if err != nil {
		return err
	}
	if want.Target == hardware.BootNone && where.boot.Enabled == "Disabled" {
		return nil
	}
	err = r.patchBoot(ctx, where, patch)
	var no *refusal
	if errors.As(err, &no) && no.says("OperationSupportedInFutureStateURI") {
		// AMI takes it at the future state's own address only (omni redfish.go). What is pending there is
		// not in the system until the reset, so that is where it is read back.
		if settings == "" {
			return err
		}
		if where, err = r.readBoot(ctx, settings); err != nil {
			return err
		}
		err = r.patchBoot(ctx, where, patch)
	}
	if err != nil {
		return err
	}
	return r.verifyBoot(ctx, where.path, patch)
}

// bootResource is the system where that lists boot targets, else its settings object: iDRAC 10 offers them
// only there, and iDRAC 9 has a settings object without them. The second result is the future state's path.
func (r *driver) bootResource(ctx context.Context) (bootResource, string, error) {
	sys, etag, err := r.system(ctx)
	if err != nil {
		return bootResource{}, "", err
	}
	settings := string(sys.Settings.Object.ID)
	if settings == "" && r.quirk.futureState != "" {
		settings = r.systemPath + "/" + r.quirk.futureState
	}
	if sys.Boot.offered() || settings == "" {
		return bootResource{path: r.systemPath, etag: etag, boot: sys.Boot}, settings, nil
	}
	where, err := r.readBoot(ctx, settings)
	if err != nil {
		return bootResource{}, "", err
	}
	if where.boot.Mode == "" {
		where.boot.Mode = sys.Boot.Mode
	}
	return where, settings, nil
}

func (b bootSettings) offered() bool { return b.Target != "" || len(b.Targets) > 0 }

func (r *driver) readBoot(ctx context.Context, at string) (bootResource, error) {
	var resource struct {
		Boot bootSettings `json:"Boot"`
	}
	etag, err := r.get(ctx, at, &resource)
	return bootResource{path: at, etag: etag, boot: resource.Boot}, err
}

func (r *driver) patchBoot(ctx context.Context, where bootResource, patch bootPatch) error {
	_, err := r.send(ctx, http.MethodPatch, where.path, where.etag, map[string]bootPatch{"Boot": patch})
	return err
}

// bootPatch says what to write to a BMC that now has the given settings.
func (q quirk) bootPatch(want hardware.Boot, now bootSettings) (bootPatch, error) {
	if !now.offered() {
		return bootPatch{}, fmt.Errorf("%w: the system has no boot override: is a licence missing?", hardware.ErrUnsupported)
	}
	patch := bootPatch{Enabled: "Once", Target: q.bootTarget(want)}
	if _, ok := choose([]text{patch.Target}, now.Targets); !ok {
		return bootPatch{}, fmt.Errorf("%w: one-time boot from %s; it offers %s", hardware.ErrUnsupported, patch.Target, now.Targets)
	}
	if want.Target == hardware.BootNone {
		patch.Enabled = "Disabled"
		return patch, nil
	}
	if want.HTTPURL != "" && now.HTTPURI == nil {
		return bootPatch{}, fmt.Errorf("%w: it takes no URL for HTTP boot: leave it out and let DHCP give it", hardware.ErrUnsupported)
	}
	patch.HTTPURI = want.HTTPURL
	mode, err := q.bootMode(want, now.Mode)
	patch.Mode = mode
	return patch, err
}

func (q quirk) bootTarget(want hardware.Boot) text {
	switch want.Target {
	case hardware.BootPXE:
		return "Pxe"
	case hardware.BootHTTP:
		return "UefiHttp"
	case hardware.BootDisk:
		if want.Mode == hardware.ModeUEFI && q.diskUEFI != "" {
			return text(q.diskUEFI)
		}
		return "Hdd"
	}
	return "None"
}

// bootMode is the mode to send along, empty for none.
func (q quirk) bootMode(want hardware.Boot, now text) (text, error) {
	asked := map[hardware.BootMode]text{hardware.ModeUEFI: "UEFI", hardware.ModeLegacy: "Legacy"}[want.Mode]
	if want.Target == hardware.BootHTTP {
		asked = "UEFI"
	}
	switch {
	case q.mode == modeNever || now == "":
		wrong := asked != "" && now != "" && now != asked
		untold := want.Mode != "" && now == "" && !(want.Target == hardware.BootDisk && q.diskUEFI != "")
		if wrong || untold {
			return "", fmt.Errorf("%w: boot mode %s with a one-time boot (%s, mode now %q): set it in the BIOS and leave the mode out",
				hardware.ErrUnsupported, want.Mode, q.name, now)
		}
		return "", nil
	case asked != "":
		return asked, nil
	case q.mode == modeAlways:
		return now, nil
	}
	return "", nil
}

// verifyBoot reads back until the BMC shows what was written; some need a moment, and Supermicro may have
// dropped the mode, which is then written once more.
func (r *driver) verifyBoot(ctx context.Context, at string, patch bootPatch) error {
	var shown bootSettings
	for try := 1; try <= 4; try++ {
		where, err := r.readBoot(ctx, at)
		if err != nil {
			return fmt.Errorf("read back: %w", err)
		}
		shown = where.boot
		held := shown.Target == patch.Target && shown.Enabled == patch.Enabled || patch.Enabled == "Disabled" && shown.Enabled == "Disabled"
		if held && (patch.Mode == "" || shown.Mode == patch.Mode) {
			return nil
		}
		if held {
			if err := r.patchBoot(ctx, where, patch); err != nil {
				return fmt.Errorf("set the boot mode again: %w", err)
			}
			continue
		}
		if err := r.transport.pause(ctx, 2*time.Second); err != nil {
			return err
		}
	}
	return fmt.Errorf("BMC took the boot override (%s, %s, mode %q) but shows %s, %s, mode %q: boot would go elsewhere",
		patch.Target, patch.Enabled, patch.Mode, shown.Target, shown.Enabled, shown.Mode)
}
