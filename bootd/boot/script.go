package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/httpboot"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
)

// scripts creates the boot scripts.
type scripts struct {
	cache    *store.Cache
	tracker  *machine.Tracker
	own      *endpoints
	keys     keys
	attempts *attempts
	log      *slog.Logger
}

// asking is a request for a boot script.
type asking struct {
	chain api.TrustLevel // that it shows by itself
	mac   api.MAC
	peer  netip.Addr
}

// script returns the boot script, or why the machine has to wait.
func (sc *scripts) script(ctx context.Context, m *api.Machine, b asking) (httpboot.Script, error) {
	if m.Spec.State != api.StateActive {
		return httpboot.Script{}, fmt.Errorf("the Machine %s has state %s: nothing is booted", m.Metadata.Name, m.Spec.State)
	}
	if !machine.Covers(m, time.Now()) {
		if err := sc.tracker.BootAsked(ctx, m); err != nil {
			sc.log.Warn("record an unsolicited boot", "machine", m.Metadata.Name, "error", err)
		}
		return httpboot.Script{}, errors.New(unsolicited(m))
	}
	p, img, err := profileOf(sc.cache, m)
	if err != nil {
		return httpboot.Script{}, err
	}
	if err := bootable(p, img); err != nil {
		return httpboot.Script{}, err
	}
	server, err := sc.own.serverFor(b.peer)
	if err != nil {
		return httpboot.Script{}, err
	}
	v := sc.attempts.proved(m, b.peer, trust.Script, b.chain)
	if !v.OK() {
		sc.attempts.notReached(ctx, m, v)
		return httpboot.Script{}, errors.New(v.Missing)
	}
	return sc.buildScript(m, p, img, server, b), nil
}

// shown is the trust level that a request for a script shows by itself.
func (sc *scripts) shown(m *api.Machine, c httpboot.Client) api.TrustLevel {
	if m.Status.Attempt != nil && sc.keys.Tokens.VerifyNonce(strings.TrimSpace(c.Query.Get("asset")), m.Metadata.UID, m.Status.Attempt.ID) {
		return api.TrustNonce
	}
	return api.TrustMAC
}

func (sc *scripts) buildScript(m *api.Machine, p *api.Profile, img *api.Image, server netip.Addr, b asking) httpboot.Script {
	asset := func(name string) string { return sc.openURL(server, img, name) }
	if b.chain == api.TrustBMC {
		asset = func(name string) string {
			return sc.bootURL(m, server) + "/blobs/sha256:" + string(img.Spec.Files[name].SHA256)
		}
	}
	s := httpboot.Script{
		Title:  fmt.Sprintf("%s boots %s %s (BootAttempt %d)", m.Metadata.Name, p.Spec.Image, img.Spec.Version, m.Status.Attempt.Number),
		Kernel: asset(api.KernelFile),
		Args:   sc.arguments(m, p, img, server, b),
	}
	if _, ok := img.Spec.Files[api.InitrdFile]; ok {
		s.Initrd = []httpboot.Initrd{{URL: asset(api.InitrdFile), Name: "initrd"}}
	}
	return s
}

// arguments are those of the kernel. The client that fetches the root file system compares its digest with the one in them.
func (sc *scripts) arguments(m *api.Machine, p *api.Profile, img *api.Image, server netip.Addr, b asking) []string {
	facts := bootFacts{mac: b.mac, ignition: sc.pointerURL(server, m, b.chain), rootfs: sc.openURL(server, img, api.RootfsFile)}
	return append(imageArguments(img, facts), p.Spec.KernelArguments...)
}

// openURL is the URL of an Image's file for everyone on the provisioning network.
func (sc *scripts) openURL(server netip.Addr, img *api.Image, name string) string {
	return sc.own.httpURL(server) + "/blobs/sha256/" + string(img.Spec.Files[name].SHA256)
}

// pointerURL is the pointer's URL for the boot that receives a script: it cannot be guessed, and differs in every
// attempt and at every level.
func (sc *scripts) pointerURL(server netip.Addr, m *api.Machine, chain api.TrustLevel) string {
	key := m.Metadata.Name + "/" + sc.keys.secret(m, ca.PurposePointer, chain)
	if chain == api.TrustBMC {
		return sc.own.apiURL(server) + "/v1/pointer/" + key
	}
	return sc.own.httpURL(server) + "/ignition/pointer/" + key
}

// bootURL is the URL from which the Machine's BMC must boot it, over TLS: it is secret, and differs in every
// BootAttempt. A client that presents it has reached trust level bmc.
func (sc *scripts) bootURL(m *api.Machine, server netip.Addr) string {
	return sc.bootURLAt(sc.own.apiURL(server), m)
}

func (sc *scripts) bootURLAt(bootd string, m *api.Machine) string {
	return bootd + "/v1/boot/" + m.Metadata.Name + "/" + sc.keys.secret(m, ca.PurposeBoot, api.TrustBMC)
}

func unsolicited(m *api.Machine) string {
	if h := m.Status.Conditions.Get(api.CondHeld); h != nil && h.Status == api.True {
		return fmt.Sprintf("Machine %s: %s", m.Metadata.Name, h.Message)
	}
	if m.Status.Attempt != nil && m.Status.Attempt.Result == api.ResultFailed {
		return fmt.Sprintf("Machine %s: its last BootAttempt failed: %s", m.Metadata.Name, m.Status.Attempt.Message)
	}
	if m.Status.Conditions.Is(api.CondConnected) {
		return fmt.Sprintf("Machine %s: no BootAttempt is open for this boot, and its host still holds its stream; waiting for that to end", m.Metadata.Name)
	}
	return fmt.Sprintf("Machine %s: no BootAttempt is open for this boot; asking its BMC whether it was reset", m.Metadata.Name)
}

// bootable returns why a Profile cannot be booted over the network.
func bootable(p *api.Profile, img *api.Image) error {
	if p.Spec.Install != nil {
		return fmt.Errorf("the Profile %s installs to %s, which this bootd cannot do yet: remove spec.install to boot it live", p.Metadata.Name, p.Spec.Install.Disk)
	}
	if c := img.Status.Conditions.Get(api.CondReady); c == nil || c.Status != api.True {
		why := "its files have not been checked yet"
		if c != nil {
			why = c.Message
		}
		return fmt.Errorf("the Image %s is not ready: %s", img.Metadata.Name, why)
	}
	if img.Spec.Files[api.KernelFile].SHA256 == "" {
		return fmt.Errorf("the Image %s has no file %q, so it cannot be booted over the network", img.Metadata.Name, api.KernelFile)
	}
	needsRoot := slices.ContainsFunc(arguments(img), func(a string) bool { return strings.Contains(a, "${rootfs_") })
	if needsRoot && img.Spec.Files[api.RootfsFile].SHA256 == "" {
		return fmt.Errorf("the Image %s has no file %q, which its kernel arguments name", img.Metadata.Name, api.RootfsFile)
	}
	return nil
}

// bootFacts are the values for an Image's kernel arguments.
type bootFacts struct {
	rootfs, ignition string
	mac              api.MAC
}

// imageArguments are the kernel arguments by which an Image's operating system finds its root file system and its
// Ignition config.
func imageArguments(img *api.Image, f bootFacts) []string {
	fill := strings.NewReplacer(
		"${rootfs_url}", f.rootfs,
		"${rootfs_sha256}", string(img.Spec.Files[api.RootfsFile].SHA256),
		"${ignition_url}", f.ignition,
		"${mac}", string(f.mac))
	args := arguments(img)
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = fill.Replace(a)
	}
	return out
}

// arguments returns the Image's own, or those that its operating system needs.
func arguments(img *api.Image) []string {
	if len(img.Spec.KernelArguments) > 0 {
		return img.Spec.KernelArguments
	}
	return osArguments(img.Spec.OS)
}

func osArguments(os string) []string {
	switch os {
	case "flatcar":
		// https://www.flatcar.org/docs/latest/installing/bare-metal/booting-with-ipxe/
		return []string{"flatcar.first_boot=1", "ignition.config.url=${ignition_url}"}
	case "fcos":
		// https://docs.fedoraproject.org/en-US/fedora-coreos/live-booting/
		return []string{"coreos.live.rootfs_url=${rootfs_url}", "ignition.firstboot", "ignition.platform.id=metal", "ignition.config.url=${ignition_url}"}
	}
	return []string{"rackweft.rootfs=${rootfs_url}", "rackweft.rootfs.sha256=${rootfs_sha256}", "ignition.firstboot", "ignition.platform.id=metal",
		"ignition.config.url=${ignition_url}", "BOOTIF=${mac}", "systemd.firstboot=off"}
}
