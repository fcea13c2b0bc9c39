package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
)

const restoreSite = deskBasics + deskYellow + `---
apiVersion: rackweft/v1alpha1
kind: Image
metadata: {name: os}
spec: {version: "1", arch: amd64, os: debian, ignitionVersion: 3.4.0, kernelArguments: ["ignition.config.url=${ignition_url}"], files: {kernel: %s, initrd: %[1]s}}
`

func (d *desk) restoreMachine(name string, number int) string {
	return fmt.Sprintf(`
apiVersion: rackweft/v1alpha1
kind: Machine
metadata: {name: %s}
spec:
  zone: yellow
  profile: worker
  links:
    - {name: pxe, mac: "52:54:00:01:%02x:00", subnet: pxe}
    - {name: prod, mac: "52:54:00:01:%02[2]x:01", subnet: prod, addresses: [198.18.8.%[2]d]}
  boot: {unsolicited: allow}
  state: Active
`, name, number)
}

func restoreNetwork(name, cidr string) string {
	return fmt.Sprintf(`
apiVersion: rackweft/v1alpha1
kind: Network
metadata: {name: %s}
spec: {zone: yellow, cidrs: [%s]}
`, name, cidr)
}

func restoreGuest(name, network string) string {
	return fmt.Sprintf(`
apiVersion: rackweft/v1alpha1
kind: Guest
metadata: {name: %s}
spec: {network: %s, cpus: 1, memory: 64Mi, image: os, state: Stopped}
`, name, network)
}

func (d *desk) bootHost(name string, number int) {
	d.t.Helper()
	h := d.host(name, number)
	d.wire(h.ns, "prod", h.mac(1), "prod", fmt.Sprintf("198.18.8.%d/24", number))
	h.boot()
	d.wait(name+" is Active", func(ctx context.Context) error {
		m, err := api.Get[api.Machine](ctx, d.client, name)
		if err == nil && m.Status.Phase != api.PhaseActive {
			err = fmt.Errorf("it is %s: %+v", m.Status.Phase, m.Status.Conditions)
		}
		return err
	})
}

// leases are those of a Network, as lines, once it has so many.
func (d *desk) leases(network string, want int) []string {
	d.t.Helper()
	var lines []string
	d.wait(fmt.Sprintf("%s has %d leases", network, want), func(ctx context.Context) error {
		peers, err := d.client.NetworkPeers(ctx, network)
		if err != nil {
			return err
		}
		lines = nil
		for _, p := range peers.Peers {
			lines = append(lines, fmt.Sprintf("%s %s %s", p.Lease, p.Host, p.VTEP))
		}
		slices.Sort(lines)
		if len(lines) != want {
			return fmt.Errorf("it has %v", lines)
		}
		return nil
	})
	return lines
}

// placed is a Guest once a host has its part.
func (d *desk) placed(name string) *api.Guest {
	d.t.Helper()
	var g *api.Guest
	d.wait("Guest "+name+" is on a host", func(ctx context.Context) error {
		var err error
		if g, err = api.Get[api.Guest](ctx, d.client, name); err != nil {
			return err
		}
		if g.Status.Host == "" || !d.has(g.Status.Host, api.GuestPartName(name), g.Metadata.UID) {
			return fmt.Errorf("it is on %q: %+v", g.Status.Host, g.Status.Conditions)
		}
		return nil
	})
	return g
}

// index is what a host has cached of its HostSpec.
type index struct {
	Epoch int64
	Parts map[string]struct {
		UID  string
		Gone bool
	}
}

func (d *desk) index(host string) index {
	var x index
	raw, err := os.ReadFile(filepath.Join(d.dir, host, "n", "hostspec", "index"))
	if err != nil {
		return x
	}
	_, body, _ := strings.Cut(string(raw), "\n")
	if err := json.Unmarshal([]byte(body), &x); err != nil {
		d.t.Fatal(err)
	}
	return x
}

// has reports whether a host is to run a part.
func (d *desk) has(host, part, uid string) bool {
	p, ok := d.index(host).Parts[part]
	return ok && p.UID == uid && !p.Gone
}

func (d *desk) bootdCommand(args ...string) string {
	d.t.Helper()
	return d.run(append([]string{d.bin.Path("bootd"), args[0]}, append(args[1:], "--config", filepath.Join(d.dir, "bootd.yaml"),
		"--state-dir", filepath.Join(d.dir, "s"), "--run-dir", filepath.Join(d.dir, "b"))...)...)
}

func (d *desk) machine(name string) *api.Machine {
	d.t.Helper()
	m, err := api.Get[api.Machine](d.t.Context(), d.client, name)
	if err != nil {
		d.t.Fatal(err)
	}
	return m
}

// TestRestore loses bootd after a backup that knows of less than there is by
// then, and brings it back: nothing that runs is provisioned over, placed again,
// or loses to somebody else what it has.
func TestRestore(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.segment("prod", "198.18.8.1/24")
	d.apply(fmt.Sprintf(restoreSite, d.image("kernel", []byte("nothing boots it"))))
	d.apply(d.restoreMachine("a1", 7) + "---" + d.restoreMachine("a2", 8) + "---" + restoreNetwork("blue", "10.5.0.0/16") + "---" + restoreGuest("web", "blue"))
	d.bootHost("a1", 7)
	d.bootHost("a2", 8)
	web := d.placed("web")
	d.leases("blue", 2)

	phrase := d.write("phrase", "correct horse battery staple\n")
	file := filepath.Join(d.dir, "site.age")
	if said := d.bootdCommand("backup", file, "--blobs", "--passphrase-file", phrase); !strings.Contains(said, "of the running bootd") {
		t.Errorf("the backup says %s", said)
	}

	// What the backup does not know.
	late := d.restoreMachine("a3", 9) + "---" + restoreNetwork("green", "10.6.0.0/16") + "---" + restoreGuest("shop", "blue") + "---" + restoreGuest("till", "green")
	d.apply(late)
	d.bootHost("a3", 9)
	shop, till := d.placed("shop"), d.placed("till")
	blue, green := d.leases("blue", 3), d.leases("green", 3)
	greenBefore, err := api.Get[api.Network](t.Context(), d.client, "green")
	if err != nil {
		t.Fatal(err)
	}
	before := map[string]*api.Machine{"a1": d.machine("a1"), "a2": d.machine("a2"), "a3": d.machine("a3")}

	d.bootd.kill()
	state, old := filepath.Join(d.dir, "s"), filepath.Join(d.dir, "old")
	if err := os.Rename(state, old); err != nil {
		t.Fatal(err)
	}
	d.bootdCommand("restore", file, "--passphrase-file", phrase)
	d.startBootd()

	// Held: the hosts that the backup knows report, the third is a stranger.
	d.recovery("a1 and a2 have reported, a3 has come", func(r *api.RecoveryStatus) error {
		reported := 0
		for _, m := range r.Machines {
			if m.Reason == api.AccountedReport {
				reported++
			}
		}
		stranger := slices.ContainsFunc(r.Recovery.Hosts, func(h api.RecoveryHost) bool { return h.Name == "a3" && h.Key != "" })
		if reported != 2 || !stranger || !r.Recovery.Held {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	d.apply(restoreNetwork("red", "10.7.0.0/16") + "---" + restoreGuest("new", "blue"))
	if code, _, said := d.weftctl("restore", "accept", "a3"); code != 1 || !strings.Contains(said, "apply its manifest first") {
		t.Errorf("a host without a Machine is accepted: %d %s", code, said)
	}
	if code, _, said := d.weftctl("restore", "finish"); code != 1 || !strings.Contains(said, "not accounted for") {
		t.Errorf("it is finished: %d %s", code, said)
	}
	d.apply(d.restoreMachine("a3", 9))
	d.recovery("a3's key is another", func(r *api.RecoveryStatus) error {
		if !slices.ContainsFunc(r.Machines, func(m api.RecoveryMachine) bool { return m.Name == "a3" && m.Reason == api.AccountedNewKey }) {
			return fmt.Errorf("%+v", r.Machines)
		}
		return nil
	})
	d.untouched("while it is held", web, shop, till)
	for _, name := range []string{"red"} {
		n, err := api.Get[api.Network](t.Context(), d.client, name)
		if err != nil || n.Status.VNI != 0 {
			t.Errorf("Network %s has VNI %d while it is held, %v", name, n.Status.VNI, err)
		}
	}
	if g, err := api.Get[api.Guest](t.Context(), d.client, "new"); err != nil || g.Status.Host != "" || len(g.Status.Addresses) > 0 {
		t.Errorf("a Guest is placed while it is held: %+v, %v", g.Status, err)
	}
	if code, _, said := d.weftctl("restore", "accept", "a3"); code != 0 {
		t.Fatalf("a3 is not accepted: %s", said)
	}
	d.recovery("everything is accounted for", func(r *api.RecoveryStatus) error {
		if r.Recovery.Held {
			return fmt.Errorf("%+v", r.Machines)
		}
		return nil
	})

	// What is new gets what nobody has.
	red := d.network("red")
	if red.Status.VNI == greenBefore.Status.VNI || red.Status.VNI == d.network("blue").Status.VNI {
		t.Errorf("VNI %d was given again", red.Status.VNI)
	}
	fresh := d.placed("new")
	for _, g := range []*api.Guest{web, shop, till} {
		if slices.Equal(g.Status.Addresses, fresh.Status.Addresses) {
			t.Errorf("address %v of Guest %s was given again", fresh.Status.Addresses, g.Metadata.Name)
		}
	}
	if now := d.leases("blue", 3); !slices.Equal(now, blue) {
		t.Errorf("the leases of blue are\n%s\nthey were\n%s", strings.Join(now, "\n"), strings.Join(blue, "\n"))
	}
	for name, m := range before {
		now := d.machine(name)
		if now.Metadata.UID != m.Metadata.UID || now.Status.HostKey != m.Status.HostKey || now.Status.Phase != api.PhaseActive || now.Status.Attempt.Number != m.Status.Attempt.Number || len(now.Status.History) != len(m.Status.History) {
			t.Errorf("Machine %s was provisioned over: it is %s, attempt %+v; it was %+v", name, now.Status.Phase, now.Status.Attempt, m.Status.Attempt)
		}
	}

	// What only the hosts know is taken over as it is.
	d.apply(late)
	for _, g := range []*api.Guest{web, shop, till} {
		now := d.placed(g.Metadata.Name)
		if now.Metadata.UID != g.Metadata.UID || now.Status.Host != g.Status.Host || !slices.Equal(now.Status.Addresses, g.Status.Addresses) || now.Status.MAC != g.Status.MAC {
			t.Errorf("Guest %s is %s %+v, it was %s %+v", g.Metadata.Name, now.Metadata.UID, now.Status, g.Metadata.UID, g.Status)
		}
	}
	if now := d.network("green"); now.Metadata.UID != greenBefore.Metadata.UID || now.Status.VNI != greenBefore.Status.VNI {
		t.Errorf("Network green is %s with VNI %d, it was %s with %d", now.Metadata.UID, now.Status.VNI, greenBefore.Metadata.UID, greenBefore.Status.VNI)
	}
	if now := d.leases("green", 3); !slices.Equal(now, green) {
		t.Errorf("the leases of green are\n%s\nthey were\n%s", strings.Join(now, "\n"), strings.Join(green, "\n"))
	}
	d.untouched("at the end", web, shop, till)

	// The old bootd, found again: no host listens to it.
	epoch := d.index("a1").Epoch
	d.bootd.kill()
	if err := errors.Join(os.Rename(state, filepath.Join(d.dir, "new")), os.Rename(old, state)); err != nil {
		t.Fatal(err)
	}
	d.startBootd()
	for _, name := range []string{"a1", "a2", "a3"} {
		d.wait(name+" refuses the old bootd", func(context.Context) error {
			raw, err := os.ReadFile(filepath.Join(d.dir, name+"-nodeagent.log"))
			if err == nil && !strings.Contains(string(raw), "bootd is behind") {
				err = errors.New("it has not said so")
			}
			return err
		})
		if x := d.index(name); x.Epoch != epoch {
			t.Errorf("host %s is at epoch %d, it was at %d", name, x.Epoch, epoch)
		}
	}
	d.untouched("under the old bootd", web, shop, till)
}

func (d *desk) network(name string) *api.Network {
	d.t.Helper()
	var n *api.Network
	d.wait("Network "+name+" has a VNI", func(ctx context.Context) error {
		var err error
		if n, err = api.Get[api.Network](ctx, d.client, name); err == nil && n.Status.VNI == 0 {
			err = fmt.Errorf("%+v", n.Status.Conditions)
		}
		return err
	})
	return n
}

func (d *desk) recovery(what string, is func(*api.RecoveryStatus) error) {
	d.t.Helper()
	d.wait(what, func(ctx context.Context) error {
		r, err := d.client.Recovery(ctx)
		if err != nil {
			return err
		}
		if r.Recovery == nil {
			return errors.New("nothing was restored")
		}
		return is(r)
	})
}

// untouched makes sure that each Guest is on the one host that it was on, and no
// other is to run it. A part that is merely gone runs on.
func (d *desk) untouched(when string, guests ...*api.Guest) {
	d.t.Helper()
	for _, g := range guests {
		for _, h := range d.hosts {
			p, there := d.index(h.name).Parts[api.GuestPartName(g.Metadata.Name)]
			if want := h.name == g.Status.Host; there != want || there && p.UID != g.Metadata.UID {
				d.t.Errorf("%s, Guest %s is on host %s: %v (uid %s), want %v", when, g.Metadata.Name, h.name, there, p.UID, want)
			}
		}
	}
}
