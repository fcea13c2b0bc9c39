// Package e2e holds the tests of the whole path: the built programs, real firmware, a real BMC protocol. What boots
// several machines again and again is alone; the others, which wait most of the time, run beside each other.
package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/lab/rig"
)

func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }

const (
	bios, uefi, stranger = "r1u01", "r1u02", "r1u03"
	password             = "a-layer-secret-4711"
)

// TestRack takes a BIOS and a UEFI machine from off to Active while bootd is killed in every stage, then does
// to them what happens to machines.
func TestRack(t *testing.T) {
	r := rig.Up(t, rig.Options{Machines: consoleByILO(), Manifests: withoutStranger, NoManifests: true})
	key := newKey(t)
	addLayers(t, r, key)
	r.Apply(manifests(t, r)...)
	t.Run("killed in every stage", func(t *testing.T) { killedInEveryStage(t, r.For(t)) })
	if t.Failed() {
		t.FailNow() // nothing below can hold
	}
	t.Run("trust level nonce", func(t *testing.T) { provedByTag(t, r.For(t)) })
	t.Run("a file that broke off", func(t *testing.T) { fileBrokeOff(t, r.For(t), key) })
	t.Run("what the host reports", func(t *testing.T) { hostReports(t, r.For(t)) })
	t.Run("networks", func(t *testing.T) { networks(t, r.For(t)) })
	t.Run("units", func(t *testing.T) { units(t, r.For(t), dialHost(t, r.For(t), bios, key)) })
	t.Run("what people get wrong", func(t *testing.T) { badInput(t, r.For(t)) })
	t.Run("strangers on the wire", func(t *testing.T) { strangers(t, r.For(t)) })
	t.Run("bad luck", func(t *testing.T) {
		t.Run("reset when Active", func(t *testing.T) { t.Parallel(); resetWhenActive(t, r.For(t)) })
		t.Run("reset in mid-boot", func(t *testing.T) { t.Parallel(); resetInMidBoot(t, r.For(t)) })
		t.Run("a machine that nobody registered", func(t *testing.T) { t.Parallel(); discovered(t, r.For(t)) })
	})
	t.Run("bootd away", func(t *testing.T) { bootdAway(t, r.For(t)) })
	t.Run("bad BMCs", func(t *testing.T) { badBMCs(t, r.For(t)) })
	t.Run("nothing leaked", func(t *testing.T) { nothingLeaked(t, r.For(t)) })
}

// withoutStranger leaves r1u03 unregistered.
func withoutStranger(name string, content []byte) []byte {
	if name != "machines.yaml" {
		return content
	}
	docs := bytes.Split(content, []byte("\n---\n"))
	docs = slices.DeleteFunc(docs, func(d []byte) bool { return bytes.Contains(d, []byte("name: "+stranger)) })
	return bytes.Join(docs, []byte("\n---\n"))
}

// manifests renders the rack's manifests without the stranger and keeps its own for later.
func manifests(t *testing.T, r *rig.Rig) []string {
	t.Helper()
	var paths []string
	for _, path := range r.Rack.Manifests() {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := path[strings.LastIndexByte(path, '/')+1:]
		if name == "machines.yaml" {
			r.File("all-machines.yaml", string(content))
		}
		if name == "profile.yaml" {
			content = bytes.Replace(content, []byte("layers: [site,"), []byte("layers: [secretive, login, site,"), 1)
		}
		content = withoutStranger(name, content)
		if name == "machines.yaml" {
			r.File("proved-machines.yaml", string(content))
			content = bytes.ReplaceAll(content, []byte("\n  state: Active"), []byte("\n  state: Active\n  trust: {minimum: nonce}"))
		}
		paths = append(paths, r.File("e2e-"+name, string(content)))
	}
	return paths
}

// provedByTag sees that the boot of either firmware sent the value that bootd had written to its AssetTag, through all
// kills of bootd, and that the tag is the system's own again. Later boots need no more than a token.
func provedByTag(t *testing.T, r *rig.Rig) {
	for _, name := range []string{bios, uefi} {
		m := r.WaitMachine(name, "its own AssetTag", func(m *api.Machine) bool { return m.Status.AssetTag == nil })
		a := m.Status.Attempt
		if a.Trust != api.TrustNonce || a.Nonce == nil || a.Nonce.State != api.NonceProved {
			t.Errorf("%s has reached %s (%s), nonce %+v", name, a.Trust, a.TrustWhy, a.Nonce)
		}
		if tag := r.Rack.Machine(name).AssetTag(); tag != name {
			t.Errorf("the AssetTag of %s is %q, want its own", name, tag)
		}
	}
	r.Apply(filepath.Join(r.Rack.Dir(), "proved-machines.yaml"))
}

// addLayers makes every host get a file with a Secret in it, one from a server that breaks off, and lets root in.
func addLayers(t *testing.T, r *rig.Rig, key ssh.Signer) {
	t.Helper()
	r.Apply(r.File("layers.yaml", login(key)+`---
apiVersion: rackweft/v1alpha1
kind: Secret
metadata: {name: app}
spec: {data: {key: `+password+`}, uses: {layers: [secretive]}}
---
apiVersion: rackweft/v1alpha1
kind: Layer
metadata: {name: secretive}
spec:
  butane: |
    storage:
      files:
        - path: /etc/app.key
          mode: 0600
          contents:
            inline: {{ secret "app" "key" }}
        - path: /etc/app.data
          contents:
            source: http://`+breakingOff(t, r)+`/
`))
}

// wholeFile is what breakingOff serves.
const wholeFile = "the first half\nthe second half\n"

// breakingOff serves a file, of which it sends each client a half at first. It returns its address.
func breakingOff(t *testing.T, r *rig.Rig) string {
	t.Helper()
	listener, err := r.Rack.Listen("198.18.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.Map
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		client, _, _ := net.SplitHostPort(req.RemoteAddr)
		if _, before := served.LoadOrStore(client, true); before {
			_, _ = io.WriteString(w, wholeFile)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(wholeFile)))
		_, _ = io.WriteString(w, wholeFile[:len(wholeFile)/2])
		_ = http.NewResponseController(w).Flush() // what breaks off before it begins is tried again by Ignition
		panic(http.ErrAbortHandler)
	}))
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return listener.Addr().String()
}

// fileBrokeOff: the initrd began Ignition's files stage again, and what Ignition printed then, all of its config, is
// not on the host for everybody who may read its journal.
func fileBrokeOff(t *testing.T, r *rig.Rig, key ssh.Signer) {
	h := dialHost(t, r, uefi, key)
	if got := h.run("cat /etc/app.data"); got != strings.TrimSpace(wholeFile) {
		t.Errorf("the file is %q", got)
	}
	journal := h.run("journalctl --no-pager --boot --quiet")
	if !strings.Contains(journal, "files of the Ignition config failed, trying again") {
		t.Error("the journal says nothing of the second try: nothing was tested")
	}
	if strings.Contains(journal, "Full config") || strings.Contains(journal, password) {
		t.Error("the journal has the Ignition config")
	}
}

// killedInEveryStage kills bootd with SIGKILL at each stage that the UEFI machine comes to. It comes back by
// itself, and both boots go on where they were: in their first BootAttempt.
func killedInEveryStage(t *testing.T, r *rig.Rig) {
	ctx, cancel := context.WithTimeout(t.Context(), rig.Patience)
	defer cancel()
	kind, err := api.LookupKind("Machine")
	if err != nil {
		t.Fatal(err)
	}
	killed := map[api.Stage]bool{}
	done := errors.New("active")
	err = r.Client.Watch(ctx, kind, func(e api.WatchEvent) error {
		m, ok := e.Object.(*api.Machine)
		if !ok || m.Metadata.Name != uefi || m.Status.Attempt == nil {
			return nil
		}
		if m.Status.Phase == api.PhaseActive {
			return done
		}
		if stage := m.Status.Attempt.Stage; !killed[stage] {
			killed[stage] = true
			return r.Rack.KillBootd()
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Fatal(r.Rack.Explain(uefi, err))
	}
	if len(killed) < 9 {
		t.Errorf("bootd was killed in the stages %v only", killed)
	}
	for _, name := range []string{bios, uefi} {
		m := r.WaitActive(name)
		if m.Status.Attempt.Number != 1 || len(m.Status.History) != 0 {
			t.Errorf("%s needed BootAttempt %d: %+v", name, m.Status.Attempt.Number, m.Status.History)
		}
	}
	t.Logf("bootd was killed %d times", len(killed))
}

// hostReports checks what came through Ignition and nodeagent.
func hostReports(t *testing.T, r *rig.Rig) {
	for i, name := range []string{bios, uefi} {
		m := r.Machine(name)
		h := m.Status.Host
		if h == nil || h.Kernel == "" || h.BootID == "" || !strings.Contains(h.OS, "Debian") {
			t.Fatalf("%s reports %+v", name, h)
		}
		if h.Stateless {
			t.Errorf("%s says that it has no filesystem rackweft-data", name)
		}
		if h.Parts[api.PartBase].State != api.PartApplied {
			t.Errorf("%s: base part %+v", name, h.Parts[api.PartBase])
		}
		want := fmt.Sprintf("198.18.8.%d/24", 11+i)
		if !slices.ContainsFunc(h.NICs, func(n api.HostNIC) bool {
			return n.Name == "prod" && n.Up && slices.ContainsFunc(n.Addresses, func(p netip.Prefix) bool { return p.String() == want })
		}) {
			t.Errorf("%s has no NIC prod with %s: %+v", name, want, h.NICs)
		}
		if m.Status.Inventory == nil || m.Status.Inventory.MemoryMiB != 2048 || len(m.Status.Inventory.NICs) != 2 {
			t.Errorf("%s: inventory %+v", name, m.Status.Inventory)
		}
	}
	if skew := time.Duration(r.Machine(bios).Status.Host.ClockSkew); skew > -24*time.Hour {
		t.Errorf("the machine of 1980 says that its clock is off by %s only: nothing was tested", skew)
	}
	out, err := r.Weftctl("explain", "machine", uefi)
	for _, want := range []string{"dhcp", "snponly.efi", "script", "pointer", "config", "join"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("explain says nothing of %s (%v):\n%s", want, err, out)
		}
	}
}

// networks brings two Networks with the same CIDR to both hosts, under systemd's sandbox, and takes one away
// again: only its tombstone does that.
func networks(t *testing.T, r *rig.Rig) {
	r.Apply(r.File("networks.yaml", `apiVersion: rackweft/v1alpha1
kind: Network
metadata: {name: customer-a}
spec: {zone: yellow, cidrs: [10.5.0.0/16], egress: masquerade}
---
apiVersion: rackweft/v1alpha1
kind: Network
metadata: {name: customer-b}
spec: {zone: yellow, cidrs: [10.5.0.0/16]}
`))
	state := func(m *api.Machine, network string) api.PartState {
		return m.Status.Host.Parts[api.NetworkPartName(network)].State
	}
	for _, name := range []string{bios, uefi} {
		r.WaitMachine(name, "both Networks applied", func(m *api.Machine) bool {
			return state(m, "customer-a") == api.PartApplied && state(m, "customer-b") == api.PartApplied && m.Status.Conditions.Is(api.CondApplied)
		})
	}
	if out, err := r.Weftctl("delete", "network", "customer-a"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{bios, uefi} {
		m := r.WaitMachine(name, "customer-a removed", func(m *api.Machine) bool { return state(m, "customer-a") == "" })
		if state(m, "customer-b") != api.PartApplied {
			t.Errorf("%s: customer-b is %q after customer-a went", name, state(m, "customer-b"))
		}
	}
	if out, err := r.Weftctl("wait", "network/customer-a", "--for=delete", "--timeout", "60s"); err != nil {
		t.Errorf("the Network outlives its tombstone: %v\n%s", err, out)
	}
}

// badInput runs weftctl with what people get wrong: each fault has its message, its place and its exit code,
// and changes nothing.
func badInput(t *testing.T, r *rig.Rig) {
	machine := func(name, mac, extra string) string {
		return `apiVersion: rackweft/v1alpha1
kind: Machine
metadata: {name: ` + name + `}
spec:
  profile: worker
` + extra + `  links:
    - {name: pxe0, mac: "` + mac + `", subnet: pxe}
`
	}
	for _, c := range []struct{ name, yaml, want string }{
		{"unknown field", machine("bad", "52:54:00:01:09:00", "  profil: x\n"), `bad.yaml:6: .*unknown field "profil"`},
		{"duplicate MAC", machine("bad", "52:54:00:01:01:00", ""), `bad.yaml:\d+: .*52:54:00:01:01:00.*` + bios},
		{"wrong zone for the Subnet", strings.Replace(machine("bad", "52:54:00:01:09:00", "  zone: red\n"), "subnet: pxe", "subnet: yellow-prod", 1), `yellow`},
		{"no YAML", "kind: [", `bad.yaml:\d+`},
		{"unknown kind", "apiVersion: rackweft/v1alpha1\nkind: Server\nmetadata: {name: a}\n", `bad.yaml:2: .*Server`},
		{"digest of another file", `apiVersion: rackweft/v1alpha1
kind: Image
metadata: {name: bad}
spec:
  version: "1"
  files: {kernel: {source: /etc/hostname, sha256: ` + strings.Repeat("0", 64) + `}}
`, `(?s)bad.yaml:\d+: .*/etc/hostname.*` + strings.Repeat("0", 16)},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := r.Weftctl("apply", "-f", r.File("bad.yaml", c.yaml))
			if exit := exitCode(err); exit == 0 || !regexp.MustCompile(c.want).MatchString(out) {
				t.Errorf("exit %d, want /%s/ in:\n%s", exit, c.want, out)
			}
		})
	}
	if out, err := r.Weftctl("get", "machine", "bad"); err == nil {
		t.Errorf("something of it was stored:\n%s", out)
	}
	if out, err := r.Weftctl("get", "machine", "--frobnicate"); exitCode(err) != 2 {
		t.Errorf("a usage error exits with %d:\n%s", exitCode(err), out)
	}
}

func exitCode(err error) int {
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// strangers asks bootd from its own address, as anybody on the provisioning network could.
func strangers(t *testing.T, r *rig.Rig) {
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext:     r.Rack.DialContext,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // a stranger trusts nobody
	}}
	uid := r.Machine(uefi).Metadata.UID
	for _, c := range []struct {
		name, method, url, token, body string
		want                           int
	}{
		{"the pointer of an Active machine by its MAC", "GET", "http://198.18.0.1:8080/ignition/pointer/52-54-00-01-02-00", "", "", 404},
		{"the pointer of an Active machine with a made-up key", "GET", "http://198.18.0.1:8080/ignition/pointer/" + uefi + "/bWFkZSB1cA", "", "", 403},
		{"the script of an Active machine", "GET", "http://198.18.0.1:8080/ipxe/script?mac=52-54-00-01-02-00", "", "", 503},
		{"the config without a token", "GET", "https://198.18.0.1:8443/v1/ignition/" + uefi + "/bWFkZSB1cA", "", "", 401},
		{"the config with a made-up token", "GET", "https://198.18.0.1:8443/v1/ignition/" + uefi + "/bWFkZSB1cA", "bWFkZSB1cA", "", 403},
		{"a join with a made-up token", "POST", "https://198.18.0.1:8443/v1/join", "bWFkZSB1cA", `{"machine":"` + uefi + `","csr":"x","time":"2026-01-01T00:00:00Z"}`, 403},
		{"the Machines", "GET", "https://198.18.0.1:8443/v1/machines", "", "", 401},
		{"a host's stream", "POST", "https://198.18.0.1:8443/v1/hosts/" + uefi + "/stream", "", `{"hello":{"uid":"` + uid + `"}}`, 401},
		{"a blob that no Image names", "GET", "http://198.18.0.1:8080/blobs/sha256/" + strings.Repeat("0", 64), "", "", 404},
		{"bootd's own files", "GET", "http://198.18.0.1:8080/../../etc/passwd", "", "", 404},
		{"metrics", "GET", "https://198.18.0.1:8443/metrics", "", "", 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), c.method, c.url, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			if c.token != "" {
				req.Header.Set("Authorization", "Bearer "+c.token)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != c.want {
				t.Errorf("%s, want %d: %s", resp.Status, c.want, body)
			}
		})
	}
}

// resetWhenActive: the machine resets by itself. Its BMC confirms that, so it is provisioned again, and what
// is on its data disk is still there.
func resetWhenActive(t *testing.T, r *rig.Rig) {
	before := r.Machine(bios)
	if err := r.Rack.Machine(bios).Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := r.WaitMachine(bios, "Active in BootAttempt 2", func(m *api.Machine) bool {
		return m.Status.Phase == api.PhaseActive && m.Status.Attempt.Number == 2
	})
	if !strings.Contains(m.Status.Attempt.Reason, "confirmed by its BMC") {
		t.Errorf("BootAttempt 2 was opened because %q", m.Status.Attempt.Reason)
	}
	if m.Status.Host.BootID == before.Status.Host.BootID || m.Status.HostKey == "" {
		t.Errorf("the host is still the one from before the reset")
	}
}

// resetInMidBoot: reprovisioned, and reset when its tokens are out already. They die with the attempt.
func resetInMidBoot(t *testing.T, r *rig.Rig) {
	if out, err := r.Weftctl("machine", "reprovision", uefi, "--no-wait"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r.WaitMachine(uefi, "the config in BootAttempt 2", func(m *api.Machine) bool {
		return m.Status.Attempt.Number == 2 && m.Status.Attempt.Reached(api.StageConfig)
	})
	if err := r.Rack.Machine(uefi).Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	consoleWasKept(t, r)
	m := r.WaitMachine(uefi, "Active in BootAttempt 3", func(m *api.Machine) bool {
		return m.Status.Phase == api.PhaseActive && m.Status.Attempt.Number == 3
	})
	if old := m.Status.History[0]; old.Result != api.ResultFailed || !strings.Contains(m.Status.Attempt.Reason, "mid-boot") {
		t.Errorf("BootAttempt 2 ended %s (%s), 3 was opened because %q", old.Result, old.Message, m.Status.Attempt.Reason)
	}
}

// discovered: a machine that nobody registered network-boots. It is written down, held, and given nothing;
// registering it lets it go on.
func discovered(t *testing.T, r *rig.Rig) {
	if err := r.Rack.Machine(stranger).PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	name := "discovered-525400010300"
	m := r.WaitMachine(name, "phase Discovered", func(m *api.Machine) bool { return m.Status.Phase == api.PhaseDiscovered })
	if m.Status.Attempt != nil {
		t.Errorf("it was given a BootAttempt: %+v", m.Status.Attempt)
	}
	waitConsole(t, r, stranger, `held|no Machine has MAC`)
	all, err := os.ReadFile(r.Rack.Dir() + "/all-machines.yaml")
	if err != nil {
		t.Fatal(err)
	}
	docs := strings.Split(string(all), "\n---\n")
	r.Apply(r.File("stranger.yaml", docs[len(docs)-1]))
	r.WaitActive(stranger)
	if _, err := api.Get[api.Machine](t.Context(), r.Client, name); !api.IsStatus(err, http.StatusNotFound) {
		t.Errorf("%s is still there after %s took it over: %v", name, stranger, err)
	}
}

// waitConsole waits until the machine's console says something.
func waitConsole(t *testing.T, r *rig.Rig, machine, pattern string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	path := r.Rack.Machine(machine).ConsoleLog()
	for deadline := time.Now().Add(rig.Patience); ; time.Sleep(300 * time.Millisecond) {
		text, err := os.ReadFile(path)
		if err == nil && re.Match(text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(r.Rack.Explain(machine, fmt.Errorf("its console never says /%s/", pattern)))
		}
	}
}

// bootdAway: hosts go on without bootd and are the same hosts when it is back.
func bootdAway(t *testing.T, r *rig.Rig) {
	before := r.Machine(bios)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := r.Rack.StopBootd(ctx); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second) // the agents notice and back off
	if err := r.Rack.StartBootd(ctx); err != nil {
		t.Fatal(err)
	}
	m := r.WaitMachine(bios, "connected again", func(m *api.Machine) bool {
		return m.Status.Host != nil && m.Status.Host.Connected && m.Status.Conditions.Is(api.CondApplied)
	})
	if m.Status.Attempt.ID != before.Status.Attempt.ID || m.Status.Host.BootID != before.Status.Host.BootID || m.Status.Phase != api.PhaseActive {
		t.Errorf("bootd's absence cost a boot: phase %s, BootAttempt %d", m.Status.Phase, m.Status.Attempt.Number)
	}
}

// nothingLeaked looks for every secret of this run where none may be.
func nothingLeaked(t *testing.T, r *rig.Rig) {
	secrets := []string{password, r.Rack.BMCPassword()}
	check := func(where string, content []byte) {
		for _, s := range secrets {
			if bytes.Contains(content, []byte(s)) {
				t.Errorf("%s holds a secret in plain text", where)
			}
		}
	}
	checkTree(t, r.Rack.BootdDir(), check)
	for _, m := range r.Rack.Machines() {
		console, err := os.ReadFile(m.ConsoleLog())
		if err != nil {
			t.Fatal(err)
		}
		check("the console of "+m.Name(), console)
	}
	for _, k := range api.Kinds() {
		out, err := r.Weftctl("get", k.Plural, "-o", "yaml")
		if err != nil {
			t.Errorf("get %s: %v\n%s", k.Plural, err, out)
		}
		check("weftctl get "+k.Plural, []byte(out))
	}
	out, err := r.Weftctl("events")
	if err != nil {
		t.Errorf("events: %v", err)
	}
	check("weftctl events", []byte(out))
	if !strings.Contains(out, "Active") {
		t.Error("the events say nothing of Active: the search proves nothing")
	}
}

// checkTree hands every file below dir to check.
func checkTree(t *testing.T, dir string, check func(string, []byte)) {
	t.Helper()
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(path, "/blobs/") {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		seen++
		check(path, content)
		return nil
	})
	if err != nil || seen < 5 {
		t.Errorf("%d files of bootd were searched: %v", seen, err)
	}
}
