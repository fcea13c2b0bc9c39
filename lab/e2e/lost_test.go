package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/lab/rig"
)

// TestFurtherRestore loses bootd and restores it while Guests run on hosts with systemd. It is backed up before the
// second host comes, and lost after its Guests have moved there.
func TestFurtherRestore(t *testing.T) {
	var second []byte // the Machine that comes later
	g := newGuestRack(t, func(name string, content []byte) []byte {
		if name == "machines.yaml" {
			content, second, _ = bytes.Cut(content, []byte("\n---\n"))
		}
		return content
	})
	r := g.Rig
	g.active(t, bios)
	r.Apply(r.File("web.yaml", webGuest))
	waitPlaced(t, r, "web")
	backup := backUp(t, r)
	r.Apply(r.File(secondHost, string(second)))
	g.active(t, uefi)
	r.Apply(r.File(laterGuest, dbGuest))
	web, _ := g.running(t)
	drainHost(t, r, g.hosts[bios], g.hosts[uefi], web)
	t.Run("bootd restored", func(t *testing.T) { bootdRestored(t, r.For(t), backup, g.hosts) })
}

// siteBackup is a backup of the rack's bootd.
type siteBackup struct{ file, phrase string }

// backUp backs bootd up while it runs.
func backUp(t *testing.T, r *rig.Rig) siteBackup {
	t.Helper()
	b := siteBackup{filepath.Join(r.Rack.Dir(), "site.age"), r.File("phrase", "correct horse battery staple\n")}
	if said := bootdCommand(t, r, "backup", b.file, "--blobs", "--passphrase-file", b.phrase); !strings.Contains(said, "of the running bootd") {
		t.Errorf("the backup says %s", said)
	}
	return b
}

func bootdCommand(t *testing.T, r *rig.Rig, args ...string) string {
	t.Helper()
	dir := r.Rack.BootdDir()
	args = append(args, "--config", filepath.Join(dir, "bootd.yaml"), "--state-dir", filepath.Join(dir, "state"), "--run-dir", r.Rack.BootdRunDir())
	out, err := command.Output(exec.CommandContext(t.Context(), r.Binaries.Path("bootd"), args...))
	if err != nil {
		t.Fatalf("bootd %q: %v", args, err)
	}
	return string(out)
}

// loss is the rack at the moment at which its bootd was lost.
type loss struct {
	t        *testing.T
	r        *rig.Rig
	hosts    map[string]*host
	machines map[string]*api.Machine
	guests   []*api.Guest // all that there were
	networks []*api.Network
	runs     map[string]hostRuns
}

// hostRuns is what runs on a host.
type hostRuns struct {
	boot      string // its boot id
	poweredOn time.Time
	qemus     []string // for each QEMU its process id and cgroup
}

// secondHost and laterGuest are the manifests of what came after the backup.
const (
	secondHost = "second-host.yaml"
	laterGuest = "later-guest.yaml"
)

const lateNetwork = `apiVersion: rackweft/v1alpha1
kind: Network
metadata: {name: customer-d}
spec: {zone: yellow, cidrs: [10.7.0.0/16]}
`

const lateGuest = `apiVersion: rackweft/v1alpha1
kind: Guest
metadata: {name: shop}
spec: {network: customer-d, cpus: 1, memory: 192Mi, image: small, state: Stopped}
`

// newest is applied while the restored Site is held.
const newest = `apiVersion: rackweft/v1alpha1
kind: Network
metadata: {name: customer-e}
spec: {zone: yellow, cidrs: [10.8.0.0/16]}
---
apiVersion: rackweft/v1alpha1
kind: Guest
metadata: {name: new}
spec: {network: customer-a, cpus: 1, memory: 192Mi, image: small, state: Stopped}
`

// bootdRestored loses bootd, and restores it from a backup that has the host bios alone, and the Guest web on it. By
// then web runs on uefi, as db does; uefi, db and a Network are younger than the backup. Nothing of that is provisioned
// over, started a second time or given to somebody else, and the bootd that was lost is refused when it is found again.
func bootdRestored(t *testing.T, r *rig.Rig, b siteBackup, hosts map[string]*host) {
	late := []string{r.File("late-network.yaml", lateNetwork), r.File("late-guest.yaml", lateGuest)}
	r.Apply(late...)
	waitPlaced(t, r, "shop")
	l := lose(t, r, hosts)
	state := filepath.Join(r.Rack.BootdDir(), "state")
	if err := os.Rename(state, state+"-old"); err != nil {
		t.Fatal(err)
	}
	if said := bootdCommand(t, r, "restore", b.file, "--passphrase-file", b.phrase); !strings.Contains(said, "weftctl restore status") {
		t.Errorf("the restore says %s", said)
	}
	l.startBootd()

	l.recovery("bios has reported, and uefi is a stranger", func(s *api.RecoveryStatus) bool {
		return s.Recovery.Held && len(s.Machines) == 1 && s.Machines[0].Reason == api.AccountedReport &&
			slices.ContainsFunc(s.Recovery.Hosts, func(h api.RecoveryHost) bool { return h.Name == uefi && h.Key != "" })
	})
	r.Apply(r.File("newest.yaml", newest))
	r.Apply(filepath.Join(r.Rack.Dir(), secondHost))
	l.recovery("uefi has a key that the backup does not know", func(s *api.RecoveryStatus) bool {
		return slices.ContainsFunc(s.Machines, func(m api.RecoveryMachine) bool { return m.Name == uefi && m.Reason == api.AccountedNewKey })
	})
	l.held()
	l.untouched("while all is held")

	if out, err := r.Weftctl("restore", "accept", uefi); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	l.recovery("nothing is held", func(s *api.RecoveryStatus) bool { return !s.Recovery.Held })
	l.goesOn(late)
	l.untouched("by the restored bootd")
	l.oldBootdRefused(state)
	l.untouched("by the bootd that was lost")
}

// lose ends bootd for good.
func lose(t *testing.T, r *rig.Rig, hosts map[string]*host) *loss {
	l := &loss{t: t, r: r, hosts: map[string]*host{}, machines: map[string]*api.Machine{}}
	for name, h := range hosts {
		l.hosts[name], l.machines[name] = h.For(t), r.Machine(name)
	}
	for _, name := range []string{"web", "db", "shop"} {
		l.guests = append(l.guests, get[api.Guest](l, name))
	}
	for _, name := range []string{"customer-a", "customer-d"} {
		l.networks = append(l.networks, get[api.Network](l, name))
	}
	l.runs = l.now()
	if err := r.Rack.LoseBootd(); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *loss) startBootd() {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*time.Minute)
	defer cancel()
	if err := l.r.Rack.StartBootd(ctx); err != nil {
		l.t.Fatal(err)
	}
}

// now looks at what runs.
func (l *loss) now() map[string]hostRuns {
	l.t.Helper()
	runs := map[string]hostRuns{}
	for name, h := range l.hosts {
		out := strings.Split(h.run("cat /proc/sys/kernel/random/boot_id; ls -l /proc/[0-9]*/exe 2>/dev/null | sed -n 's|.* /proc/\\([0-9]*\\)/exe -> .*/qemu-system-x86_64$|\\1|p' | while read p; do echo $p $(cat /proc/$p/cgroup); done"), "\n")
		runs[name] = hostRuns{out[0], l.r.Rack.Machine(name).PoweredOn(), out[1:]}
	}
	return runs
}

// untouched makes sure that each host is in the boot that it was in, and that each Guest that ran has the QEMU that it
// had and no other anywhere.
func (l *loss) untouched(when string) {
	l.t.Helper()
	now := l.now()
	for name, was := range l.runs {
		is := now[name]
		if is.boot != was.boot || !is.poweredOn.Equal(was.poweredOn) {
			l.t.Errorf("%s: %s was booted again %s", when, name, is.poweredOn)
		}
		if !slices.Equal(is.qemus, was.qemus) {
			l.t.Errorf("%s: %s has the QEMUs %q, it had %q", when, name, is.qemus, was.qemus)
		}
	}
	for _, g := range l.guests {
		var on []string
		for name, is := range now {
			for _, q := range is.qemus {
				if strings.HasSuffix(q, unitOf(g)) {
					on = append(on, name)
				}
			}
		}
		var want []string
		if g.Status.State == "Running" {
			want = []string{g.Status.Host}
		}
		if !slices.Equal(on, want) {
			l.t.Errorf("%s: Guest %s runs on %q, want %q", when, g.Metadata.Name, on, want)
		}
	}
}

func (l *loss) recovery(what string, is func(*api.RecoveryStatus) bool) {
	l.t.Helper()
	eventually(l.t, what, func() error {
		s, err := l.r.Client.Recovery(l.t.Context())
		if err == nil && (s.Recovery == nil || !is(s)) {
			err = fmt.Errorf("%+v %+v", s.Recovery, s.Machines)
		}
		return err
	})
}

// held makes sure that nothing is booted, allocated or placed.
func (l *loss) held() {
	l.t.Helper()
	if out, err := l.r.Weftctl("restore", "status"); err != nil || !strings.Contains(out, "Held: 1 of 2 Machines") || !strings.Contains(out, "weftctl restore accept "+uefi) {
		l.t.Errorf("weftctl restore status: %v\n%s", err, out)
	}
	if m := l.r.Machine(uefi); m.Status.Attempt != nil {
		l.t.Errorf("%s is provisioned: %+v", uefi, m.Status.Attempt)
	}
	if n := get[api.Network](l, "customer-e"); n.Status.VNI != 0 {
		l.t.Errorf("Network customer-e has VNI %d", n.Status.VNI)
	}
	if g := get[api.Guest](l, "new"); g.Status.Host != "" || len(g.Status.Addresses) > 0 {
		l.t.Errorf("Guest new is on %q with %v", g.Status.Host, g.Status.Addresses)
	}
}

// goesOn makes sure that all is what it was once its manifests are applied, and that what is new has what nobody had.
func (l *loss) goesOn(late []string) {
	l.t.Helper()
	l.r.Apply(append(late, filepath.Join(l.r.Rack.Dir(), laterGuest))...)
	for _, was := range l.guests {
		name := was.Metadata.Name
		g := waitPlaced(l.t, l.r, name)
		if g.Metadata.UID != was.Metadata.UID || g.Status.Host != was.Status.Host || !slices.Equal(g.Status.Addresses, was.Status.Addresses) || g.Status.MAC != was.Status.MAC {
			l.t.Errorf("Guest %s is %s %+v; it was %s %+v", name, g.Metadata.UID, g.Status, was.Metadata.UID, was.Status)
		}
	}
	fresh := waitPlaced(l.t, l.r, "new")
	vnis := map[uint32]string{waitVNI(l.t, l.r, "customer-e").Status.VNI: "customer-e"}
	for _, was := range l.networks {
		n := waitVNI(l.t, l.r, was.Metadata.Name)
		if n.Metadata.UID != was.Metadata.UID || n.Status.VNI != was.Status.VNI || vnis[n.Status.VNI] != "" {
			l.t.Errorf("Network %s is %s with VNI %d, it was %s with %d; %v", n.Metadata.Name, n.Metadata.UID, n.Status.VNI, was.Metadata.UID, was.Status.VNI, vnis)
		}
		vnis[n.Status.VNI] = n.Metadata.Name
	}
	for _, was := range l.guests {
		if was.Spec.Network == fresh.Spec.Network && slices.Equal(was.Status.Addresses, fresh.Status.Addresses) {
			l.t.Errorf("address %v of Guest %s was given again", fresh.Status.Addresses, was.Metadata.Name)
		}
	}
	l.connected()
	l.recovery("nothing is unknown", func(s *api.RecoveryStatus) bool { return len(s.Recovery.Unknown)+len(s.Recovery.Hosts) == 0 })
	if out, err := l.r.Weftctl("restore", "finish"); err != nil || out != "finished\n" {
		l.t.Errorf("weftctl restore finish: %v\n%s", err, out)
	}
}

// connected waits until both hosts have what bootd says, and makes sure that they are in the attempt that they were in.
func (l *loss) connected() {
	l.t.Helper()
	for _, name := range slices.Sorted(maps.Keys(l.machines)) {
		was := l.machines[name]
		m := l.r.WaitMachine(name, "Active and connected", func(m *api.Machine) bool {
			return m.Status.Phase == api.PhaseActive && m.Status.Host != nil && m.Status.Host.Connected && m.Status.Conditions.Is(api.CondApplied)
		})
		if m.Metadata.UID != was.Metadata.UID || m.Status.HostKey != was.Status.HostKey || m.Status.Attempt.ID != was.Status.Attempt.ID {
			l.t.Errorf("Machine %s is %s, attempt %+v; it was %s, %+v", name, m.Metadata.UID, m.Status.Attempt, was.Metadata.UID, was.Status.Attempt)
		}
	}
}

// oldBootdRefused starts the bootd that was lost on its own state until each host has refused it, then the restored
// one again.
func (l *loss) oldBootdRefused(state string) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*time.Minute)
	defer cancel()
	if err := errors.Join(l.r.Rack.StopBootd(ctx), os.Rename(state, state+"-restored"), os.Rename(state+"-old", state)); err != nil {
		l.t.Fatal(err)
	}
	l.startBootd()
	for name, h := range l.hosts {
		h.wait("a word that the old bootd is refused", func() bool {
			return h.run("journalctl --quiet --boot --unit nodeagent.service | grep 'bootd is behind' || true") != ""
		})
		if m := l.r.Machine(name); m.Status.Host != nil && m.Status.Host.Connected {
			l.t.Errorf("%s is connected to the bootd that was lost", name)
		}
	}
	if err := errors.Join(l.r.Rack.LoseBootd(), os.Rename(state, state+"-old"), os.Rename(state+"-restored", state)); err != nil {
		l.t.Fatal(err)
	}
	l.startBootd()
	l.connected()
}

func get[T any, P interface {
	*T
	api.Object
}](l *loss, name string) *T {
	l.t.Helper()
	o, err := api.Get[T, P](l.t.Context(), l.r.Client, name)
	if err != nil {
		l.t.Fatal(err)
	}
	return o
}

// waitPlaced waits until a Guest's host has its part.
func waitPlaced(t *testing.T, r *rig.Rig, name string) *api.Guest {
	t.Helper()
	var g *api.Guest
	eventually(t, "Guest "+name+" is on a host", func() error {
		var err error
		if g, err = api.Get[api.Guest](t.Context(), r.Client, name); err != nil {
			return err
		}
		if g.Status.Host == "" {
			return fmt.Errorf("%+v", g.Status.Conditions)
		}
		m, err := api.Get[api.Machine](t.Context(), r.Client, g.Status.Host)
		if err == nil && (m.Status.Host == nil || m.Status.Host.Parts[api.GuestPartName(name)].State != api.PartApplied) {
			err = fmt.Errorf("%s has not applied it", g.Status.Host)
		}
		return err
	})
	return g
}

func waitVNI(t *testing.T, r *rig.Rig, name string) *api.Network {
	t.Helper()
	var n *api.Network
	eventually(t, "Network "+name+" has a VNI", func() error {
		var err error
		if n, err = api.Get[api.Network](t.Context(), r.Client, name); err == nil && n.Status.VNI == 0 {
			err = fmt.Errorf("%+v", n.Status.Conditions)
		}
		return err
	})
	return n
}
