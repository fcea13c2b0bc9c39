package boot

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/httpboot"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/ignition"
)

// holdFor is how long a machine that is held waits before it asks again.
const holdFor = 5 * time.Second

func (d *Decider) httpURL(server netip.Addr) string {
	return "http://" + net.JoinHostPort(server.String(), strconv.Itoa(d.HTTPPort))
}

func (d *Decider) apiURL(server netip.Addr) string {
	return "https://" + net.JoinHostPort(server.String(), strconv.Itoa(d.APIPort))
}

// serverFor is bootd's address as the peer's Subnet reaches it.
func (d *Decider) serverFor(peer netip.Addr) (netip.Addr, error) {
	l, ok := d.Leases.Lookup(peer)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address %s is leased to nobody by this bootd", peer)
	}
	s, ok := store.Cached[api.Subnet](d.Cache, l.Subnet)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address %s is leased on Subnet %s, which does not exist any more", peer, l.Subnet)
	}
	return d.address(s, netip.Addr{}), nil
}

// Script implements httpboot.Decider: the boot script of a Machine whose
// BootAttempt is open; all others wait and are told why.
func (d *Decider) Script(ctx context.Context, c httpboot.Client) (httpboot.Script, error) {
	mac := api.MAC(c.MAC.String())
	m, _ := store.CachedMachineByMAC(d.Cache, mac)
	script, reason := d.script(ctx, c, m)
	if reason != "" {
		d.decide(m, mac, c.Addr, "script", "held (503)", reason)
		return httpboot.Script{}, &httpboot.Hold{Reason: reason, RetryAfter: holdFor}
	}
	d.decide(m, mac, c.Addr, "script", "served", "BootAttempt "+strconv.Itoa(m.Status.Attempt.Number)+" is open")
	d.reached(ctx, m, api.StageScript)
	return script, nil
}

func (d *Decider) script(ctx context.Context, c httpboot.Client, m *api.Machine) (script httpboot.Script, held string) {
	if m == nil || isDiscovered(m) {
		return script, fmt.Sprintf("no Machine has MAC %s: apply one to register it", c.MAC)
	}
	if m.Spec.State != api.StateActive {
		return script, fmt.Sprintf("Machine %s has state %s: nothing is booted", m.Metadata.Name, m.Spec.State)
	}
	// Until Ignition has its pointer no token has left, so a boot that starts
	// over is the same BootAttempt. After that it is a new boot.
	if !current(m) || m.Status.Attempt.Reached(api.StagePointer) {
		if err := d.Tracker.BootAsked(ctx, m.Metadata.Name); err != nil {
			d.Log.Warn("record an unsolicited boot", "machine", m.Metadata.Name, "error", err)
		}
		return script, unsolicited(m)
	}
	p, img, ok := d.profile(m)
	if !ok {
		return script, fmt.Sprintf("Machine %s: its Profile or Image does not exist any more", m.Metadata.Name)
	}
	server, err := d.serverFor(c.Addr)
	if err != nil {
		return script, err.Error()
	}
	return d.buildScript(m, p, img, server, api.MAC(c.MAC.String())), ""
}

func unsolicited(m *api.Machine) string {
	if h := m.Status.Conditions.Get(api.CondHeld); h != nil && h.Status == api.True {
		return fmt.Sprintf("Machine %s: %s", m.Metadata.Name, h.Message)
	}
	if m.Status.Attempt != nil && m.Status.Attempt.Result == api.ResultFailed {
		return fmt.Sprintf("Machine %s: its last BootAttempt failed: %s", m.Metadata.Name, m.Status.Attempt.Message)
	}
	return fmt.Sprintf("Machine %s: no BootAttempt is open for this boot; asking its BMC whether it was reset", m.Metadata.Name)
}

func (d *Decider) buildScript(m *api.Machine, p *api.Profile, img *api.Image, server netip.Addr, mac api.MAC) httpboot.Script {
	base := d.httpURL(server)
	asset := func(name string) string { return base + "/blobs/sha256/" + string(img.Spec.Files[name].SHA256) }
	s := httpboot.Script{
		Title:  fmt.Sprintf("%s boots %s %s (BootAttempt %d)", m.Metadata.Name, p.Spec.Image, img.Spec.Version, m.Status.Attempt.Number),
		Kernel: asset(api.KernelFile),
		Args:   append(imageArguments(img, bootFacts{rootfs: asset(api.RootfsFile), ignition: pointerURL(base, mac), mac: mac}), p.Spec.KernelArguments...),
	}
	if _, ok := img.Spec.Files[api.InitrdFile]; ok {
		s.Initrd = []httpboot.Initrd{{URL: asset(api.InitrdFile), Name: "initrd"}}
	}
	return s
}

func pointerURL(base string, mac api.MAC) string {
	return base + "/ignition/pointer/" + strings.ReplaceAll(string(mac), ":", "-")
}

// bootFacts fill an Image's kernel arguments.
type bootFacts struct {
	rootfs, ignition string
	mac              api.MAC
}

// imageArguments are the kernel arguments by which an Image's operating system
// finds its root file system and its Ignition config.
func imageArguments(img *api.Image, f bootFacts) []string {
	args := img.Spec.KernelArguments
	if len(args) == 0 {
		args = osArguments(img.Spec.OS)
	}
	fill := strings.NewReplacer(
		"${rootfs_url}", f.rootfs,
		"${rootfs_sha256}", string(img.Spec.Files[api.RootfsFile].SHA256),
		"${ignition_url}", f.ignition,
		"${mac}", string(f.mac))
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = fill.Replace(a)
	}
	return out
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

// Pointer implements httpboot.Decider: where the config is and the token for
// it. It is given only to the address that is leased to the Machine's MAC,
// while its BootAttempt is open and nobody has joined in it.
func (d *Decider) Pointer(ctx context.Context, c httpboot.Client, accept string) ([]byte, string, error) {
	mac := api.MAC(c.MAC.String())
	m, _ := store.CachedMachineByMAC(d.Cache, mac)
	refuse := func(reason string) ([]byte, string, error) {
		d.decide(m, mac, c.Addr, "pointer", "held (503)", reason)
		return nil, "", &httpboot.Hold{Reason: reason, RetryAfter: holdFor}
	}
	switch {
	case m == nil || isDiscovered(m):
		return refuse(fmt.Sprintf("no Machine has MAC %s", mac))
	case !current(m):
		return refuse(fmt.Sprintf("Machine %s has no BootAttempt open", m.Metadata.Name))
	case m.Status.Attempt.Reached(api.StageJoined):
		return refuse(fmt.Sprintf("the host of Machine %s has joined in this BootAttempt already", m.Metadata.Name))
	case !d.leasedTo(c.Addr, m):
		return refuse(fmt.Sprintf("address %s is leased to none of the MACs of Machine %s", c.Addr, m.Metadata.Name))
	}
	_, img, ok := d.profile(m)
	if !ok {
		return refuse(fmt.Sprintf("the Profile or Image of Machine %s does not exist any more", m.Metadata.Name))
	}
	server, err := d.serverFor(c.Addr)
	if err != nil {
		return refuse(err.Error())
	}
	version, err := ignition.NegotiateVersion(accept, img.Spec.IgnitionVersion)
	if err != nil {
		return refuse(err.Error())
	}
	body, err := ignition.Pointer(ignition.PointerConfig{
		URL:     d.apiURL(server) + "/v1/ignition/" + m.Metadata.Name,
		CAs:     [][]byte{d.CA.CertPEM()},
		Token:   d.Tokens.Token(ca.PurposeConfig, m.Metadata.UID, m.Status.Attempt.ID),
		Version: version,
	})
	if err != nil {
		return refuse(err.Error())
	}
	d.decide(m, mac, c.Addr, "pointer", "served", "Ignition "+version)
	d.reached(ctx, m, api.StagePointer)
	return body, contentType(version), nil
}

func contentType(version string) string {
	return "application/vnd.coreos.ignition+json;version=" + version
}

// Fetched is told of every file that was sent whole over TFTP, by name.
func (d *Decider) Fetched(ctx context.Context, peer netip.Addr, file string) {
	m, mac := d.byPeer(peer)
	d.decide(m, mac, peer, "tftp", "sent "+file, "a boot file")
	d.reached(ctx, m, api.StageLoader)
}

// FetchedLoader is told of every boot loader that was sent whole over HTTP.
func (d *Decider) FetchedLoader(ctx context.Context, peer netip.Addr, file string) {
	m, mac := d.byPeer(peer)
	d.decide(m, mac, peer, "asset", "sent "+file, "a boot loader by HTTP boot")
	d.reached(ctx, m, api.StageLoader)
}

// FetchedBlob is told of every blob that was sent whole over HTTP.
func (d *Decider) FetchedBlob(ctx context.Context, peer netip.Addr, digest api.SHA256) {
	m, mac := d.byPeer(peer)
	if m == nil {
		return
	}
	if digest == d.Agent.Digest {
		d.decide(m, mac, peer, "asset", "sent nodeagent", "Ignition installs it")
		return
	}
	_, img, ok := d.profile(m)
	if !ok {
		return
	}
	for file, stage := range map[string]api.Stage{api.KernelFile: api.StageKernel, api.InitrdFile: api.StageInitrd, api.RootfsFile: api.StageRootfs} {
		if img.Spec.Files[file].SHA256 == digest {
			d.decide(m, mac, peer, "asset", "sent "+file, "Image "+img.Metadata.Name+" "+img.Spec.Version)
			d.reached(ctx, m, stage)
		}
	}
}

// MayFetch reports whether a blob may be had without a password on the boot
// server: only what an Image names, and nodeagent.
func (d *Decider) MayFetch(digest api.SHA256) bool {
	if digest == d.Agent.Digest {
		return true
	}
	for _, img := range store.CachedList[api.Image](d.Cache) {
		for _, f := range img.Spec.Files {
			if f.SHA256 == digest {
				return true
			}
		}
	}
	return false
}
