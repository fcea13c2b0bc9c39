package redfish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/redfishtest"
)

// deed is what a BMC is asked for, and how the server behind it tells that it was done.
type deed struct {
	name string
	on   bool // the server runs, and has for a while
	do   func(ctx context.Context, b *BMC) error
	done func(s *subject) string // what is wrong, if anything
}

// subject is a BMC with the one server that is acted on.
type subject struct {
	*redfishtest.Server
	system string
}

func (s *subject) last() redfishtest.Boot {
	booted := s.Booted()
	if len(booted) == 0 {
		return redfishtest.Boot{Target: "nothing"}
	}
	return booted[len(booted)-1]
}

func bootedFrom(targets ...string) func(*subject) string {
	return func(s *subject) string {
		if boot := s.last(); !slices.Contains(targets, boot.Target) || boot.Mode == "Legacy" {
			return fmt.Sprintf("boots from %s %s", boot.Target, boot.Mode)
		}
		return ""
	}
}

func boots(n int) func(*subject) string {
	return func(s *subject) string {
		if got := len(s.Booted()); got != n || !s.On(s.system) {
			return fmt.Sprintf("%d boots, on %t", got, s.On(s.system))
		}
		return ""
	}
}

func isOff(s *subject) string {
	if s.On(s.system) {
		return "still on"
	}
	return ""
}

func bootThenOn(boot hardware.Boot) func(context.Context, *BMC) error {
	return func(ctx context.Context, b *BMC) error {
		if err := b.SetBootOnce(ctx, boot); err != nil {
			return err
		}
		return b.PowerOn(ctx)
	}
}

// ageError is a reset that is not as old as it is.
type ageError time.Duration

func (e ageError) Error() string { return fmt.Sprintf("reset %s ago", time.Duration(e)) }

const (
	testTag   = "weft-0123456789abcdef"
	testURL   = "https://198.18.0.1:8443/boot/r1/0123/ipxe.efi"
	testImage = "https://198.18.0.1:8443/weft.iso"
)

func deeds() []deed {
	return []deed{
		{"state", true, func(ctx context.Context, b *BMC) error {
			state, err := b.PowerState(ctx)
			if err == nil && state != hardware.PowerOn {
				err = fmt.Errorf("state %s", state)
			}
			return err
		}, nil},
		{"on", false, func(ctx context.Context, b *BMC) error { return b.PowerOn(ctx) }, boots(1)},
		{"on again", true, func(ctx context.Context, b *BMC) error { return b.PowerOn(ctx) }, boots(1)},
		{"off", true, func(ctx context.Context, b *BMC) error { return b.PowerOff(ctx) }, isOff},
		{"restart", true, func(ctx context.Context, b *BMC) error { return b.ForceRestart(ctx) }, boots(2)},
		{"restart from off", false, func(ctx context.Context, b *BMC) error { return b.ForceRestart(ctx) }, boots(1)},
		{"shutdown", true, func(ctx context.Context, b *BMC) error { return b.GracefulShutdown(ctx) }, isOff},
		{"pxe", false, bootThenOn(hardware.Boot{Target: hardware.BootPXE}), bootedFrom("Pxe", "UefiPxe")},
		{"pxe in UEFI", false, bootThenOn(hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeUEFI}), bootedFrom("Pxe", "UefiPxe")},
		{"http", false, bootThenOn(hardware.Boot{Target: hardware.BootHTTP}), bootedFrom("UefiHttp")},
		{"http from a URL", false, bootThenOn(hardware.Boot{Target: hardware.BootHTTP, HTTPURL: testURL}), func(s *subject) string {
			if boot := s.last(); boot.Target != "UefiHttp" || boot.URI != testURL {
				return fmt.Sprintf("boots from %s %q", boot.Target, boot.URI)
			}
			return ""
		}},
		{"CA", false, func(ctx context.Context, b *BMC) error {
			ca, err := newCA()
			return errors.Join(err, b.TrustAtBoot(ctx, ca), b.TrustAtBoot(ctx, ca)) // the second time it is there
		}, nil},
		{"disk", false, bootThenOn(hardware.Boot{Target: hardware.BootDisk}), bootedFrom("Hdd", "UefiHdd")},
		{"pxe taken back", false, func(ctx context.Context, b *BMC) error {
			return errors.Join(b.SetBootOnce(ctx, hardware.Boot{Target: hardware.BootPXE}), b.SetBootOnce(ctx, hardware.Boot{Target: hardware.BootNone}), b.PowerOn(ctx))
		}, bootedFrom("None")},
		{"tag", false, func(ctx context.Context, b *BMC) error {
			if err := b.SetAssetTag(ctx, testTag); err != nil {
				return err
			}
			return b.PowerOn(ctx)
		}, func(s *subject) string {
			if tag := s.last().AssetTag; tag != testTag {
				return fmt.Sprintf("POST shows the tag %q", tag)
			}
			return ""
		}},
		{"media", false, func(ctx context.Context, b *BMC) error {
			// What is in the drive already is no obstacle.
			return errors.Join(b.InsertMedia(ctx, hardware.Media{Image: "https://198.18.0.1:8443/other.iso"}), b.InsertMedia(ctx, hardware.Media{Image: testImage}), b.SetBootOnce(ctx, hardware.Boot{Target: hardware.BootMedia}), b.PowerOn(ctx))
		}, func(s *subject) string {
			if boot := s.last(); boot.URI != testImage || boot.Target == "None" {
				return fmt.Sprintf("boots from %s %q", boot.Target, boot.URI)
			}
			return ""
		}},
		{"media ejected", false, func(ctx context.Context, b *BMC) error {
			return errors.Join(b.InsertMedia(ctx, hardware.Media{Image: testImage}), b.EjectMedia(ctx, testImage), b.EjectMedia(ctx, ""), b.SetBootOnce(ctx, hardware.Boot{Target: hardware.BootMedia}), b.PowerOn(ctx))
		}, func(s *subject) string {
			if boot := s.last(); boot.URI != "" || boot.Target == "None" {
				return fmt.Sprintf("boots from %s %q", boot.Target, boot.URI)
			}
			return ""
		}},
		{"another's media", false, func(ctx context.Context, b *BMC) error {
			return errors.Join(b.InsertMedia(ctx, hardware.Media{Image: testImage}), b.EjectMedia(ctx, "https://198.18.0.1:8443/other.iso"), b.SetBootOnce(ctx, hardware.Boot{Target: hardware.BootMedia}), b.PowerOn(ctx))
		}, func(s *subject) string {
			if boot := s.last(); boot.URI != testImage {
				return fmt.Sprintf("boots from %s %q", boot.Target, boot.URI)
			}
			return ""
		}},
		{"events", true, func(ctx context.Context, b *BMC) error {
			to := hardware.Subscription{Destination: "https://198.18.0.1:8443/v1/bmc-events/x", Context: "rackweft-x", Secret: "s3cret"}
			return errors.Join(b.Subscribe(ctx, to), b.Subscribe(ctx, to)) // the second time it is there
		}, func(s *subject) string {
			made := 0
			for _, sent := range s.Sent(http.MethodPost) {
				if strings.Contains(sent, "/Subscriptions ") {
					made++
				}
			}
			if made > 1 {
				return fmt.Sprintf("%d subscriptions", made)
			}
			return ""
		}},
		{"BMC reset", true, func(ctx context.Context, b *BMC) error {
			if err := b.ResetBMC(ctx); err != nil {
				return err
			}
			_, err := b.PowerState(ctx) // it is logged in to again
			return err
		}, boots(1)},
		{"light", true, func(ctx context.Context, b *BMC) error { return b.Identify(ctx, true) }, nil},
		{"inventory", true, func(ctx context.Context, b *BMC) error {
			inv, err := b.Inventory(ctx)
			if macs := macsOf(inv); err == nil && (len(slices.Compact(slices.Sorted(slices.Values(macs)))) != len(macs) || slices.Contains(macs, redfishtest.HostInterfaceMAC)) {
				err = fmt.Errorf("ports %q: one twice, or that to the BMC", macs)
			}
			if err == nil && (inv.CPUs.Count == 0 || inv.MemoryMiB == 0 || len(inv.NICs) == 0) {
				err = fmt.Errorf("inventory %+v", inv)
			}
			return err
		}, nil},
		{"last reset", true, func(ctx context.Context, b *BMC) error {
			evidence, err := b.LastReset(ctx)
			if age, ok := evidence.Age(); err == nil && ok && (age < 8*time.Minute || age > 11*time.Minute) { // POST took a minute of ten
				err = ageError(age)
			}
			return err
		}, nil},
		{"after a lost login", true, nil, isOff}, // see outcome
	}
}

func macsOf(inv hardware.Inventory) (macs []string) {
	for _, nic := range inv.NICs {
		macs = append(macs, strings.ToUpper(nic.MAC))
	}
	return macs
}

// deedsOn leaves out what a single trait tells nothing new about.
func deedsOn(name string) []deed {
	if !strings.HasPrefix(name, "trait ") {
		return deeds()
	}
	few := []string{"state", "on", "off", "restart", "pxe", "pxe in UEFI", "tag", "media", "media ejected", "light", "inventory", "last reset", "after a lost login"}
	return slices.DeleteFunc(deeds(), func(d deed) bool { return !slices.Contains(few, d.name) })
}

// outcome does the deed and says how it went: "ok", or what was wrong, bad manners included.
func (d deed) outcome(t *testing.T, s *subject) string {
	t.Helper()
	if s.On(s.system) {
		s.Press(s.system)
	}
	s.Clock.Advance(10 * time.Minute)
	if d.on {
		s.Press(s.system)
		s.Clock.Advance(10 * time.Minute)
	}
	endpoint := hardware.Endpoint{Address: s.URL, Username: redfishtest.Username, Password: redfishtest.Password}
	b, err := dial(t.Context(), endpoint, quiet(), s.Clock.Pause)
	if err == nil {
		do := d.do
		if do == nil {
			s.EndSessions()
			do = func(ctx context.Context, b *BMC) error { return b.PowerOff(ctx) }
		}
		err = errors.Join(do(t.Context(), b), b.Close(t.Context()))
	}
	said := kindOf(err)
	if err == nil && d.done != nil {
		if wrong := d.done(s); wrong != "" {
			said = wrong
		}
	}
	if err != nil {
		t.Logf("%v", err)
	}
	return said + manners(s)
}

func kindOf(err error) string {
	for _, kind := range []struct {
		is   error
		name string
	}{
		{nil, "ok"},
		{hardware.ErrUnsupported, "unsupported"},
		{hardware.ErrForbidden, "forbidden"},
		{hardware.ErrPasswordChange, "password change"},
		{hardware.ErrUnauthorized, "unauthorized"},
		{hardware.ErrUnreachable, "unreachable"},
	} {
		if errors.Is(err, kind.is) {
			return kind.name
		}
	}
	var age ageError
	if errors.As(err, &age) {
		return age.Error()
	}
	return "error"
}

func manners(s *subject) string {
	var bad []string
	if n := s.Crowd(); n > 1 {
		bad = append(bad, fmt.Sprintf("%d requests at the same time", n))
	}
	if n := s.SessionsLeft(); n > 0 {
		bad = append(bad, fmt.Sprintf("%d sessions left", n))
	}
	if n := s.WrongPasswords(); n > 0 {
		bad = append(bad, fmt.Sprintf("%d wrong passwords", n))
	}
	if list := s.SentTwice(); len(list) > 0 {
		bad = append(bad, "accepted and sent again: "+list[0])
	}
	if list := s.SentAgain(); len(list) > 0 {
		bad = append(bad, "refused and sent again: "+list[0])
	}
	if len(bad) == 0 {
		return ""
	}
	return "; " + strings.Join(bad, "; ")
}

// bmcs are those that the driver is tried on: each family, each captured tree, and each trait alone.
func bmcs(t *testing.T) map[string]func(*testing.T) *subject {
	t.Helper()
	all := map[string]func(*testing.T) *subject{}
	for _, v := range redfishtest.Vendors() {
		all[v.Name] = func(t *testing.T) *subject { return &subject{redfishtest.StartVendor(t, v.Name), v.System} }
	}
	dir := filepath.Join("..", "..", "..", "shared", "redfish")
	for folder, v := range redfishtest.Captured(t, dir) {
		all["captured "+folder] = func(t *testing.T) *subject {
			return &subject{redfishtest.StartCaptured(t, filepath.Join(dir, folder), v), v.System}
		}
	}
	for trait := range redfishtest.Traits() {
		all["trait "+string(trait)] = func(t *testing.T) *subject {
			v, err := redfishtest.VendorOf("hpe-ilo5")
			if err != nil {
				t.Fatal(err)
			}
			tree, err := v.Tree()
			if err != nil {
				t.Fatal(err)
			}
			return &subject{redfishtest.Start(t, tree, trait), v.System}
		}
	}
	delete(all, "trait "+string(redfishtest.Silent)) // it takes a minute and a half each
	return all
}

// cells are deeds on BMCs with the outcome that is right where it is not "ok".
type cells struct {
	bmcs, deeds string // separated by commas; no deeds are all that are tried
	outcome     string
}

const (
	powering = "on, off, restart, pxe, pxe in UEFI, tag, media, media ejected, after a lost login" // what needs a power action to be accepted
	boot     = "pxe, pxe in UEFI, media, media ejected"
	inDrive  = "media, media ejected"
)

func expected() []cells {
	return []cells{
		// The tree has no such thing.
		{"dell-idrac8, hp-ilo4, openbmc, supermicro-x10, sushy-tools, captured supermicro-x10, captured nvidia-gh200", "http", "unsupported"},
		{"dell-idrac8, hp-ilo4, openbmc, supermicro-x10, supermicro-x11, ami, lenovo-tsm, sushy-tools, captured supermicro-x10, captured nvidia-gh200", "http from a URL", "unsupported"},
		{"dell-idrac8, hp-ilo4, openbmc, supermicro-x10, supermicro-x11, ami, lenovo-tsm, lenovo-xcc, two-systems, sushy-tools, captured supermicro-x10, captured nvidia-gh200", "CA", "unsupported"},
		{"sushy-tools, two-systems, captured nvidia-gh200", "tag", "unsupported"},
		{"sushy-tools, trait no light", "light", "unsupported"},
		{"sushy-tools, supermicro-x10, captured supermicro-x10, captured hpe-dl360gen10-ilo5-2.96", "events", "unsupported"},
		{"openbmc, supermicro-x10, captured supermicro-x10, captured hpe-dl360gen10-ilo5-2.96, captured dell-xr8620t-idrac9-6.10", inDrive + ", another's media", "unsupported"},
		{"trait no virtual media, trait licence for media, trait only UefiPxe", inDrive, "unsupported"},
		{"trait no reset action", powering, "unsupported"},
		{"trait no boot override, trait licence for boot", boot, "unsupported"},
		// A mode that cannot be told cannot be promised.
		{"hp-ilo4, supermicro-x10, two-systems, captured supermicro-x10, captured nvidia-gh200, trait boot mode unknown", "pxe in UEFI", "unsupported"},

		// Its BMC lists no MAC but its own: the NICs are in none of its resources.
		{"captured nvidia-gh200", "inventory", "error"},

		{"trait light refused", "light", "forbidden"},
		{"trait read-only user", powering + ", light", "forbidden"},
		{"trait password change refuses logins, trait password change in the session", "", "password change"},
		{"trait override ignored", boot, "error"},
		{"trait task fails, trait reset does nothing", powering, "error"},
		// The reset was told by a clock that was wrong, and put right since: nothing in it says so.
		{"trait clock jumps after the reset", "last reset", "reset 6h9m0s ago"},
	}
}

// outcomes spreads the rows out: BMC/deed to outcome.
func outcomes(rows []cells) map[string]string {
	all := map[string]string{}
	for _, row := range rows {
		for bmc := range strings.SplitSeq(row.bmcs, ", ") {
			if row.deeds == "" {
				for _, d := range deedsOn(bmc) {
					all[bmc+"/"+d.name] = row.outcome
				}
				continue
			}
			for name := range strings.SplitSeq(row.deeds, ", ") {
				all[bmc+"/"+name] = row.outcome
			}
		}
	}
	return all
}

// The driver does every deed on every BMC, or says what that one cannot do.
func TestDeeds(t *testing.T) {
	all := bmcs(t)
	right := outcomes(expected())
	for cell := range maps.Keys(right) {
		checkCell(t, all, cell)
	}
	seen := table{cells: map[string]string{}}
	t.Cleanup(func() { t.Logf("what each BMC does:\n%s", &seen) })
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if testing.Short() && strings.HasPrefix(name, "trait ") {
				t.Skip("each trait alone: not with -short")
			}
			for _, d := range deedsOn(name) {
				cell := name + "/" + d.name
				want := cmp.Or(right[cell], "ok")
				got := d.outcome(t, all[name](t))
				seen.note(cell, got)
				if got != want {
					t.Errorf("%s: %s, want %s", cell, got, want)
				}
			}
		})
	}
}

// table is what was seen: deed by BMC.
type table struct {
	mu    sync.Mutex
	cells map[string]string
}

func (s *table) note(cell, outcome string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cells[cell] = outcome
}

// String has a line for each BMC; each trait alone is left out.
func (s *table) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	var names, of []string
	for _, d := range deeds() {
		names = append(names, d.name)
	}
	for cell := range s.cells {
		bmc, _, _ := strings.Cut(cell, "/")
		of = append(of, bmc)
	}
	slices.Sort(of)
	_, _ = fmt.Fprintln(w, "BMC\t"+strings.Join(names, "\t"))
	for _, bmc := range slices.Compact(of) {
		if strings.HasPrefix(bmc, "trait ") {
			continue
		}
		line := bmc
		for _, name := range names {
			line += "\t" + s.cells[bmc+"/"+name]
		}
		_, _ = fmt.Fprintln(w, line)
	}
	_ = w.Flush()
	return text.String()
}

// checkCell refuses a row that names what is not there. Captured trees need not be.
func checkCell(t *testing.T, all map[string]func(*testing.T) *subject, cell string) {
	t.Helper()
	bmc, name, _ := strings.Cut(cell, "/")
	if !slices.ContainsFunc(deedsOn(bmc), func(d deed) bool { return d.name == name }) || all[bmc] == nil && !strings.HasPrefix(bmc, "captured ") {
		t.Errorf("%s: there is no such cell", cell)
	}
}

// FuzzTraits: whatever a BMC has of traits, the driver says that a thing is done only where it is, and keeps its manners.
func FuzzTraits(f *testing.F) {
	for seed := range uint64(12) {
		f.Add(seed)
	}
	but := []redfishtest.Trait{redfishtest.Silent} // which takes a minute and a half
	all := deeds()
	vendors := redfishtest.Vendors()
	f.Fuzz(func(t *testing.T, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 0))
		v := vendors[random.IntN(len(vendors))]
		more, d := v.Pick(random, 4, but...), all[random.IntN(len(all))]
		s := &subject{redfishtest.StartVendor(t, v.Name, more...), v.System}
		got := d.outcome(t, s)
		kinds := []string{"ok", "unsupported", "forbidden", "password change", "unauthorized", "unreachable", "error"}
		// A shutdown is the operating system's to do: that it was accepted is all that can be said.
		unseen := d.name == "shutdown" && got == "still on"
		// Without an override the firmware's own order counts, which a disk is in.
		own := d.name == "disk" && got == "boots from None" && slices.Contains(more, redfishtest.NoBootOverride)
		if !slices.Contains(kinds, got) && !strings.HasPrefix(got, "reset ") && !unseen && !own {
			t.Errorf("%s with %q: %s: %s", v.Name, more, d.name, got)
		}
	})
}
