package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/internal/wait/waittest"
	"github.com/rackweft/rackweft/lab/rig"
)

// leafRoute is what the border leaf tells the Zone.
const leafRoute = "198.18.200.0/24"

// zone has both hosts reflect for each other and for a border leaf, which is BIRD beside bootd, at the gateway of
// their Subnet. The leaf reaches what a Network advertises, also while a speaker is killed, and nothing once that is
// gone.
func zone(t *testing.T, r *rig.Rig, h *host) {
	l := startLeaf(t, r)
	r.Apply(r.File("zone-with-leaf.yaml", `apiVersion: rackweft/v1alpha1
kind: Zone
metadata: {name: yellow}
spec:
  asn: 64601
  reflectors: {count: 2}
  prefixes: [198.18.64.0/18]
  uplinks:
    - {address: 198.18.8.1, asn: 64600, secret: leaf, import: [{prefix: `+leafRoute+`}], export: [{prefix: 198.18.64.0/18, le: 24}], keepNextHop: true}
---
apiVersion: rackweft/v1alpha1
kind: Secret
metadata: {name: leaf}
spec: {data: {password: `+leafKey+`}, uses: {uplinks: [yellow]}}
---
apiVersion: rackweft/v1alpha1
kind: Network
metadata: {name: customer-c}
spec: {zone: yellow, cidrs: [198.18.64.0/20], advertise: true}
`))
	leases := map[string]netip.Prefix{}
	for _, name := range []string{bios, uefi} {
		r.WaitMachine(name, "customer-c applied", func(m *api.Machine) bool {
			return m.Status.Host.Parts[api.NetworkPartName("customer-c")].State == api.PartApplied
		})
	}
	eventually(t, "all sessions", func() error { return allEstablished(t, r, 3) })
	v, err := r.Client.ZoneRoutes(t.Context(), "yellow")
	if err != nil {
		t.Fatal(err)
	}
	for _, route := range v.Routes {
		if route.Network == "customer-c" {
			leases[route.Origin] = route.Prefix
		}
	}
	if len(leases) != 2 {
		t.Fatalf("of customer-c the Zone has %v", leases)
	}
	for host, lease := range leases {
		eventually(t, "the leaf reaches "+host, func() error { return l.reaches(lease.Addr().Next()) })
	}
	eventually(t, "what the leaf tells", func() error { return bothHave(t, r, leafRoute) })
	foreign := "198.18.201.0/24"
	if out, err := r.Weftctl("bgp", "policy-test", foreign, "--from", "198.18.8.1", "--zone", "yellow"); err == nil {
		t.Errorf("%s would be taken from the leaf:\n%s", foreign, out)
	}
	if bothHave(t, r, foreign) == nil {
		t.Errorf("%s of the leaf is in the Zone", foreign)
	}
	t.Run("speaker killed", func(t *testing.T) { speakerKilled(t, r.For(t), h.For(t), l, leases[h.name].Addr().Next()) })

	if out, err := r.Weftctl("delete", "network", "customer-c"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(t, "the leaf forgets the Network", func() error {
		if out := l.routes(); strings.Contains(out, "198.18.64") {
			return fmt.Errorf("the leaf has\n%s", out)
		}
		return nil
	})
}

// speakerKilled: the leaf and the kernel keep the host's routes until its speaker is back.
func speakerKilled(t *testing.T, r *rig.Rig, h *host, l *leaf, inside netip.Addr) {
	const unit = "nodeagent-speaker.service"
	speaker, agent := mainPID(h, unit), mainPID(h, "nodeagent.service")
	h.run("kill -9 " + speaker)
	killed := time.Now()
	again := func() bool {
		now := mainPID(h, unit)
		return now != speaker && now != "0" && allEstablished(t, r, 3) == nil && sessionsSince(t, r, h.name, killed)
	}
	sent := 0
	for done := false; !done; sent++ {
		if err := l.reaches(inside); err != nil {
			t.Fatalf("packet %d, %s after the speaker of %s was killed: %v", sent, time.Since(killed), h.name, err)
		}
		done = again()
		if time.Since(killed) > rig.Patience {
			t.Fatal(r.Rack.Explain(h.name, fmt.Errorf("its sessions never come back: %w", allEstablished(t, r, 3))))
		}
	}
	t.Logf("%d packets and none lost until all sessions were back", sent)
	if now := mainPID(h, "nodeagent.service"); now != agent {
		t.Errorf("nodeagent was %s and is %s", agent, now)
	}
}

// sessionsSince reports whether a host's sessions with uplinks came up after then: what bootd knows is seconds old.
func sessionsSince(t *testing.T, r *rig.Rig, host string, then time.Time) bool {
	v, err := r.Client.ZoneSessions(t.Context(), "yellow")
	return err == nil && !slices.ContainsFunc(v.Sessions, func(s api.ZoneSession) bool {
		return s.Host == host && s.Session.Role == api.BGPUplink && !s.Session.Since.After(then)
	})
}

// allEstablished wants that many sessions, as both of their ends see them.
func allEstablished(t *testing.T, r *rig.Rig, want int) error {
	v, err := r.Client.ZoneSessions(t.Context(), "yellow")
	if err != nil {
		return err
	}
	for _, s := range v.Sessions {
		if s.Session.State != api.BGPEstablished {
			return fmt.Errorf("the session of %s and %s is %q: %s %s", s.Host, s.Session.Peer, s.Session.State, s.Session.LastError, s.Message)
		}
	}
	if len(v.Sessions) != want {
		return fmt.Errorf("%d sessions, want %d: %+v", len(v.Sessions), want, v.Sessions)
	}
	return nil
}

// bothHave wants a route that no host originates at both reflectors.
func bothHave(t *testing.T, r *rig.Rig, prefix string) error {
	v, err := r.Client.ZoneRoutes(t.Context(), "yellow")
	if err != nil {
		return err
	}
	for _, route := range v.Routes {
		if route.Prefix.String() == prefix && len(route.At) == 2 {
			return nil
		}
	}
	return fmt.Errorf("%s is not at both reflectors: %+v", prefix, v.Routes)
}

func eventually(t *testing.T, what string, is func() error) {
	t.Helper()
	waittest.Pass(t, rig.Patience, func() error {
		if err := is(); err != nil {
			return fmt.Errorf("%s: never: %w", what, err)
		}
		return nil
	})
}

// leafKey is the MD5 key of the leaf's sessions.
const leafKey = "leaf-key-4712"

// leaf is BIRD in bootd's namespace.
type leaf struct {
	t         *testing.T
	namespace string
	socket    string
}

func startLeaf(t *testing.T, r *rig.Rig) *leaf {
	t.Helper()
	_, ns := r.Rack.Namespaces()
	l := &leaf{t, filepath.Join("/run/netns", ns), filepath.Join(r.Rack.Dir(), "bird.ctl")}
	conf := `log stderr all;
router id 198.18.8.1;
protocol device { scan time 1; }
protocol static { ipv4; route ` + leafRoute + ` blackhole; route 198.18.201.0/24 blackhole; }
protocol kernel { ipv4 { export where source = RTS_BGP; }; }
`
	for i := range 2 {
		conf += fmt.Sprintf(`protocol bgp host%d {
  local 198.18.8.1 as 64600; neighbor 198.18.8.1%[1]d as 64601; password "%s"; ttl security on; hold time 9; connect delay time 1; connect retry time 3; error wait time 2, 4;
  ipv4 { import all; export where source = RTS_STATIC; };
}
`, i+1, leafKey)
	}
	bird, err := exec.LookPath("bird")
	if err != nil {
		t.Fatalf("%v: run lab/deps", err)
	}
	var said bytes.Buffer
	cmd := exec.Command("nsenter", "--net="+l.namespace, bird, "-f", "-c", r.File("bird.conf", conf), "-s", l.socket)
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("BIRD says:\n%s", said.Bytes())
		}
	})
	return l
}

func (l *leaf) run(name string, args ...string) (string, error) {
	out, err := command.Output(exec.CommandContext(l.t.Context(), "nsenter", append([]string{"--net=" + l.namespace, name}, args...)...))
	return string(out), err
}

func (l *leaf) routes() string {
	out, err := l.run("birdc", "-s", l.socket, "show", "route")
	if err != nil {
		l.t.Fatalf("birdc: %v\n%s", err, out)
	}
	return out
}

func (l *leaf) reaches(a netip.Addr) error {
	if out, err := l.run("ping", "-c1", "-W2", a.String()); err != nil {
		return fmt.Errorf("%w\n%s\nit has\n%s", err, out, l.routes())
	}
	return nil
}
