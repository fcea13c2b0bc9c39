package redfish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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

	Certificates link `json:"Certificates"` // of HTTPS boot
}

// bootPatch is what is written. Nothing more: BMCs refuse what they do not know.
type bootPatch struct {
	Enabled text   `json:"BootSourceOverrideEnabled"`
	Mode    text   `json:"BootSourceOverrideMode,omitempty"`
	Target  text   `json:"BootSourceOverrideTarget,omitempty"` // empty only with Disabled
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
	if want.Target == hardware.BootNone {
		if where, err = r.pendingBoot(ctx, where, settings); err != nil {
			return err
		}
	}
	r.mode = cmp.Or(r.mode, where.boot.Mode)
	where.boot.Mode = r.mode // BMCs fall back to Legacy by themselves: what was there at first counts
	patch, err := r.quirk.bootPatch(want, where.boot)
	if err != nil {
		return err
	}
	if err := r.bootURL(ctx, want, &patch, where.boot); err != nil {
		return err
	}
	if want.Target == hardware.BootNone && where.boot.Enabled == "Disabled" {
		return nil
	}
	w := patch.write(where, r.quirk.targets(want, where.boot))
	if settings != "" && settings != where.path {
		w.elsewhere = append(w.elsewhere, settings)
	}
	if err := r.patch(ctx, w); err != nil {
		return err
	}
	return r.verifyBoot(ctx, w, where.boot.Mode)
}

// bootURL has the BIOS take the URL where the BMC's family has an attribute for it, also where the override shows one:
// iLO 6 refuses to write that. The end of an override is the end of the URL.
func (r *driver) bootURL(ctx context.Context, want hardware.Boot, patch *bootPatch, now bootSettings) error {
	ends := want.Target == hardware.BootNone
	if r.quirk.bootURL == nil || want.HTTPURL == "" && !ends {
		return nil
	}
	err := r.setBootURL(ctx, want.HTTPURL)
	if errors.Is(err, hardware.ErrUnsupported) && (ends || now.HTTPURI != nil) {
		return nil
	}
	if err == nil {
		patch.HTTPURI = ""
	}
	return err
}

// The fields of a boot override.
const (
	bootEnabled = "BootSourceOverrideEnabled"
	bootMode    = "BootSourceOverrideMode"
	bootTarget  = "BootSourceOverrideTarget"
	bootURI     = "HttpBootUri"
)

// write is the patch with what may be changed about it: the mode can be left out where it is right already, and a missing
// one is the one that was asked for, else the one that is there.
func (p bootPatch) write(where bootResource, targets []text) *write {
	w := &write{path: where.path, etag: where.etag, under: "Boot", fields: map[string]any{bootEnabled: p.Enabled}, has: map[string]any{}}
	if p.Target != "" {
		w.fields[bootTarget] = p.Target
	}
	if p.Mode != "" {
		w.fields[bootMode] = p.Mode
	}
	if p.HTTPURI != "" {
		w.fields[bootURI], w.secret = p.HTTPURI, p.HTTPURI
	}
	if mode := cmp.Or(p.Mode, where.boot.Mode); mode != "" {
		w.has[bootMode] = mode
	}
	w.droppable = func(field string) bool {
		return field == bootMode && (p.Mode == "" || p.Mode == where.boot.Mode) || field == bootEnabled && p.Enabled == "Disabled" && p.Target != ""
	}
	if i := slices.Index(targets, p.Target); i >= 0 {
		w.others = map[string][]text{bootTarget: targets[i+1:]}
	}
	return w
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

// pendingBoot is where an override is pending: in the future state's object where the system itself shows none.
func (r *driver) pendingBoot(ctx context.Context, where bootResource, settings string) (bootResource, error) {
	if settings == "" || settings == where.path || where.boot.Enabled != "Disabled" {
		return where, nil
	}
	future, err := r.readBoot(ctx, settings)
	if err != nil {
		return where, ignoreRefusal(err)
	}
	if future.boot.offered() && future.boot.Enabled != "Disabled" {
		return future, nil
	}
	return where, nil
}

func (b bootSettings) offered() bool { return b.Target != "" || len(b.Targets) > 0 }

func (r *driver) readBoot(ctx context.Context, at string) (bootResource, error) {
	var resource struct {
		Boot bootSettings `json:"Boot"`
	}
	etag, err := r.get(ctx, at, &resource)
	return bootResource{path: at, etag: etag, boot: resource.Boot}, err
}

// bootPatch says what to write to a BMC that now has the given settings.
func (q quirk) bootPatch(want hardware.Boot, now bootSettings) (bootPatch, error) {
	if !now.offered() {
		return bootPatch{}, fmt.Errorf("%w: %w", hardware.ErrUnsupported, hardware.ErrNoOverride)
	}
	targets := q.targets(want, now)
	target, ok := choose(targets, now.Targets)
	if !ok && want.Target == hardware.BootNone {
		return bootPatch{Enabled: "Disabled"}, nil
	}
	if !ok {
		return bootPatch{}, fmt.Errorf("%w: one-time boot from %s; it offers %s", hardware.ErrUnsupported, targets[0], now.Targets)
	}
	patch := bootPatch{Enabled: "Once", Target: target}
	if want.Target == hardware.BootNone {
		patch.Enabled = "Disabled"
		return patch, nil
	}
	if want.HTTPURL != "" && now.HTTPURI == nil && q.bootURL == nil {
		return bootPatch{}, errNoURL()
	}
	patch.HTTPURI = want.HTTPURL
	mode, err := q.bootMode(want, now.Mode, target)
	patch.Mode = mode
	return patch, err
}

// targets are the values that mean the target, the best first. Where the mode cannot be sent along, a target that names
// UEFI says it.
func (q quirk) targets(want hardware.Boot, now bootSettings) []text {
	uefi := want.Mode == hardware.ModeUEFI || want.Mode == "" && now.Mode != "Legacy"
	both := func(plain, forUEFI text) []text {
		switch {
		case !uefi && want.Mode == hardware.ModeLegacy:
			return []text{plain}
		case want.Mode == hardware.ModeUEFI && now.Mode == "":
			return []text{forUEFI, plain}
		}
		return []text{plain, forUEFI}
	}
	switch want.Target {
	case hardware.BootPXE:
		return both("Pxe", "UefiPxe")
	case hardware.BootHTTP:
		return []text{"UefiHttp"}
	case hardware.BootDisk:
		if want.Mode == hardware.ModeUEFI && q.diskUEFI != "" {
			return []text{text(q.diskUEFI), "Hdd"}
		}
		return both("Hdd", "UefiHdd")
	case hardware.BootMedia:
		if q.mediaIsUSB {
			return slices.Concat(both("UsbCd", "UefiUsbCd"), both("Cd", "UefiCd"))
		}
		return slices.Concat(both("Cd", "UefiCd"), both("UsbCd", "UefiUsbCd"))
	case hardware.BootSetup:
		return []text{"BiosSetup"}
	}
	return []text{"None"}
}

// bootMode is the mode to send along, empty for none.
func (q quirk) bootMode(want hardware.Boot, now, target text) (text, error) {
	asked := map[hardware.BootMode]text{hardware.ModeUEFI: "UEFI", hardware.ModeLegacy: "Legacy"}[want.Mode]
	if want.Target == hardware.BootHTTP {
		asked = "UEFI"
	}
	switch {
	case q.mode == modeNever || now == "":
		wrong := asked != "" && now != "" && now != asked
		untold := want.Mode != "" && now == "" && !(asked == "UEFI" && strings.HasPrefix(string(target), "Uefi"))
		if untold {
			return "", fmt.Errorf("%w: %w (%s), so %s with a one-time boot cannot be asked for: leave the mode out", hardware.ErrUnsupported, hardware.ErrModeUntold, q.name, want.Mode)
		}
		if wrong {
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

// verifyBoot reads back until the BMC shows what was written; some need a moment. The mode may have fallen back to Legacy
// (Supermicro, where it was not sent along): it is then written once more, as it was asked for or as it was before.
func (r *driver) verifyBoot(ctx context.Context, w *write, before text) error {
	mode, _ := w.fields[bootMode].(text)
	wanted := cmp.Or(mode, before)
	var shown bootSettings
	again := false
	for range 6 {
		where, err := r.readBoot(ctx, w.path)
		if err != nil {
			return fmt.Errorf("read back: %w", err)
		}
		shown = where.boot
		held := w.shownIn(shown)
		if held && (wanted == "" || shown.Mode == "" || shown.Mode == wanted) {
			return nil
		}
		if held && !again {
			again, w.etag, w.fields[bootMode] = true, where.etag, wanted
			if err := r.patch(ctx, w); err != nil {
				return fmt.Errorf("set the boot mode again: %w", err)
			}
			continue
		}
		if err := r.transport.pause(ctx, 2*time.Second); err != nil {
			return err
		}
	}
	return fmt.Errorf("BMC took the boot override (%s, %s, mode %q) but shows %s, %s, mode %q: boot would go elsewhere",
		w.fields[bootTarget], w.fields[bootEnabled], mode, shown.Target, shown.Enabled, shown.Mode)
}

// shownIn reports whether the settings show the override that was written, whatever their mode.
func (w *write) shownIn(shown bootSettings) bool {
	if enabled, _ := w.fields[bootEnabled].(text); shown.Enabled == "Disabled" && (enabled == "" || enabled == "Disabled") {
		return true
	}
	if url := w.fields[bootURI]; url != nil && shown.HTTPURI != nil && *shown.HTTPURI != url {
		return false
	}
	return shown.Target == w.fields[bootTarget] && shown.Enabled == w.fields[bootEnabled]
}
