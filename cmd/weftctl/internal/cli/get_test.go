package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/api"
)

func (b *bootd) machine(name string, change func(*api.Machine)) *api.Machine {
	m := new(api.Machine)
	m.Metadata.Name = name
	m.Spec.Zone = "yellow"
	m.Spec.Links = []api.Link{{Name: "pxe0", MAC: "52:54:00:01:07:00"}}
	if change != nil {
		change(m)
	}
	b.store(m)
	return m
}

func phase(p api.Phase) func(*api.Machine) { return func(m *api.Machine) { m.Status.Phase = p } }

func TestGet(t *testing.T) {
	b := newBootd(t)
	b.machine("r1u07", func(m *api.Machine) { m.Metadata.Labels = map[string]string{"tier": "app"} })
	b.machine("r1u08", phase(api.PhaseActive))
	zone := new(api.Zone)
	zone.Metadata.Name, zone.Spec.ASN = "yellow", 64601
	b.store(zone)

	b.run(t, "", "get", "machines").want(t, 0, `NAME    ZONE     RACK/U   PHASE    STAGE   POWER   ADDRESS   AGE
r1u07   yellow   -        -        -       -       -         -
r1u08   yellow   -        Active   -       -       -         -
`)
	b.run(t, "", "get", "m", "r1u08", "-o", "name").want(t, 0, "machine/r1u08\n")
	b.run(t, "", "get", "machine/r1u07", "zone/yellow", "-o", "name").want(t, 0, "machine/r1u07\nzone/yellow\n")
	b.run(t, "", "get", "machines,zones", "-o", "name").want(t, 0, "machine/r1u07\nmachine/r1u08\nzone/yellow\n")
	b.run(t, "", "get", "machines", "-l", "tier=app", "-o", "name").want(t, 0, "machine/r1u07\n")
	b.run(t, "", "get", "machines", "-l", "tier!=app", "-o", "name").want(t, 0, "machine/r1u08\n")
	b.run(t, "", "get", "machines", "-l", "tier in (app,db)", "-l", "!retired", "-o", "name").want(t, 0, "machine/r1u07\n")
	b.run(t, "", "get", "machines", "-l", "tier=none").want(t, 0, "", "there are none")
	b.run(t, "", "get", "all").want(t, 0, `ZONES
NAME     ASN     PREFIXES   REFLECTORS   UPLINKS   READY   AGE
yellow   64601   -          -            0         -       -

MACHINES
NAME    ZONE     RACK/U   PHASE    STAGE   POWER   ADDRESS   AGE
r1u07   yellow   -        -        -       -       -         -
r1u08   yellow   -        Active   -       -       -         -
`)
	r := b.run(t, "", "get", "zone", "yellow", "-o", "yaml")
	r.want(t, 0, `apiVersion: rackweft/v1alpha1
kind: Zone
metadata:
  name: yellow
  resourceVersion: "13"
spec:
  asn: 64601
  reflectors:
    count: 2
  encryption: none
`)
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal([]byte(b.run(t, "", "get", "machines", "-o", "json").out), &list); err != nil || len(list.Items) != 2 {
		t.Errorf("%v, %d items", err, len(list.Items))
	}
	// What get prints, apply reads.
	for _, output := range []string{"yaml", "json"} {
		text := b.run(t, "", "get", "machines,zones", "-o", output).out
		b.run(t, text, "apply", "-f", "-").want(t, 0, "zone/yellow unchanged\nmachine/r1u07 unchanged\nmachine/r1u08 unchanged\n")
	}
}

func TestGetFaults(t *testing.T) {
	b := newBootd(t)
	b.run(t, "", "get").want(t, 2, "", "want a kind")
	b.run(t, "", "get", "servers").want(t, 2, "", `unknown kind "servers": the kinds are sites, secrets`)
	b.run(t, "", "get", "machines", "-o", "xml").want(t, 2, "", "want table, wide")
	b.run(t, "", "get", "machines", "-l", "x~y z").want(t, 2, "", "-l: invalid selector", "want =, ==, !=, in or notin")
	b.run(t, "", "get", "machine/a", "b").want(t, 2, "", "not have the form KIND/NAME")
	b.run(t, "", "get", "machine", "nope").want(t, 1, "", "there is no Machine \"nope\": `weftctl get machines` lists them")
	b.run(t, "", "get", "all", "-w").want(t, 2, "", "one kind at a time")
	b.run(t, "", "get", "hostspecs", "-w").want(t, 2, "", "cannot be watched")
}

func TestGetWatch(t *testing.T) {
	b := newBootd(t)
	b.machine("r1u07", phase(api.PhaseAvailable))
	ctx, cancel := context.WithCancel(t.Context())
	lines := newLines()
	done := make(chan int, 1)
	go func() {
		done <- Run(ctx, Process{Args: []string{"get", "machines", "-w", "--server", "unix://" + b.socket}, Env: func(string) string { return "" }, Out: lines, Err: lines})
	}()
	lines.next(t, "NAME ")
	lines.next(t, "r1u07   yellow   -        Available ")
	b.machine("r1u07", phase(api.PhaseActive))
	lines.next(t, "r1u07   yellow   -        Active    ")
	b.drop("machines/r1u07")
	if line := lines.next(t, "r1u07"); !strings.HasSuffix(line, "deleted") {
		t.Errorf("%q", line)
	}
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("exit code %d after an interrupt", code)
	}
}

// lines hands out what is written to it line by line.
type lines struct {
	w    chan string
	rest string
}

func newLines() *lines { return &lines{w: make(chan string, 1000)} }

func (l *lines) Write(p []byte) (int, error) {
	l.rest += string(p)
	for {
		line, rest, ok := strings.Cut(l.rest, "\n")
		if !ok {
			return len(p), nil
		}
		l.rest = rest
		l.w <- line
	}
}

func (l *lines) next(t *testing.T, prefix string) string {
	t.Helper()
	select {
	case line := <-l.w:
		if !strings.HasPrefix(line, prefix) {
			t.Fatalf("printed %q, want %q…", line, prefix)
		}
		return line
	case <-time.After(30 * time.Second):
		t.Fatalf("nothing came; waiting for %q", prefix)
	}
	return ""
}

func TestWait(t *testing.T) {
	b := newBootd(t)
	b.machine("r1u07", phase(api.PhaseActive))
	b.machine("r1u08", func(m *api.Machine) {
		m.Status.Phase = api.PhaseProvisioning
		m.Status.Conditions = api.Conditions{{Type: api.CondBMC, Status: api.True}}
	})
	b.machine("r1u09", func(m *api.Machine) {
		m.Status.Phase = api.PhaseFailed
		m.Status.Attempt = &api.BootAttempt{Number: 3, Retry: api.MaxRetries, Stage: api.StageDHCP, Result: api.ResultFailed, Message: "no DHCP within 5m"}
	})
	b.run(t, "", "wait", "machine/r1u07", "--for=phase=Active").want(t, 0, "machine/r1u07 is Active\n")
	b.run(t, "", "wait", "machine", "r1u08", "--for=condition=BMCReachable").want(t, 0, "machine/r1u08 is BMCReachable\n")
	b.run(t, "", "wait", "machine/none", "--for=delete").want(t, 0, "machine/none is gone\n")
	b.run(t, "", "wait", "machines", "r1u07", "r1u08", "none", "--for=phase=Active", "--timeout=200ms").want(t, 1, "machine/r1u07 is Active\n",
		"gave up waiting for Active: machine/none does not exist, machine/r1u08 is Provisioning")
	b.run(t, "", "wait", "machine/r1u09", "--for=phase=Active").want(t, 1, "",
		"machine/r1u09 will not be Active: BootAttempt 3 failed at DHCP: no DHCP within 5m")
	b.run(t, "", "wait", "machine/r1u09", "--for=phase=Failed").want(t, 0, "machine/r1u09 is Failed\n")
	b.run(t, "", "wait", "machines", "--for=phase=Active").want(t, 2, "", "name the machines, or give --all")
	b.run(t, "", "wait", "machine/r1u07", "--for=happiness").want(t, 2, "", "want phase=PHASE")
	b.run(t, "", "wait", "machine/r1u07").want(t, 2, "", "want phase=PHASE")
	b.run(t, "", "wait", "zones", "--all", "--for=condition=Ready", "--timeout=10s").want(t, 0, "")
}

func TestWaitFollowsChanges(t *testing.T) {
	b := newBootd(t)
	b.machine("r1u07", phase(api.PhaseProvisioning))
	b.machine("r1u08", phase(api.PhaseProvisioning))
	out := newLines()
	done := make(chan int, 1)
	go func() {
		done <- Run(t.Context(), Process{Args: []string{"wait", "machines", "--all", "--for=phase=Active", "--server", "unix://" + b.socket},
			Env: func(string) string { return "" }, Out: out, Err: out})
	}()
	b.machine("r1u08", phase(api.PhaseActive))
	out.next(t, "machine/r1u08 is Active")
	b.machine("r1u07", phase(api.PhaseActive))
	out.next(t, "machine/r1u07 is Active")
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestExplain(t *testing.T) {
	b := newBootd(t)
	at := time.Date(2026, 11, 21, 4, 0, 0, 0, time.Local)
	b.run(t, "", "explain", "machine", "52:54:00:01:07:00").want(t, 1, "", `nothing is known about "52:54:00:01:07:00"`)
	m := new(api.Machine)
	m.Metadata.Name = "r1u07"
	m.Status.Phase = api.PhaseProvisioning
	m.Status.Attempt = &api.BootAttempt{Number: 2, Reason: "reprovision", Started: at, Deadline: at.Add(time.Hour), Stage: api.StageDHCP,
		Stages: []api.StageTime{{Stage: api.StagePowerOn, Time: at.Add(time.Second)}, {Stage: api.StageDHCP, Time: at.Add(63 * time.Second)}}}
	b.explain = &api.Explanation{Machine: m, Summary: []string{"It waits for the kernel.\x1b[2J"},
		Decisions: []api.Decision{{Time: at, Question: "dhcp", Answer: "198.18.0.107", Reason: "reserved", Peer: "198.18.0.107"}},
		Events:    []api.Event{{Time: at, Kind: "Machine", Name: "r1u07", Type: api.Warning, Reason: "Retry", Message: "again"}},
		Origins:   []api.Origin{{Path: "file /etc/motd", Layer: "site", Overrides: []string{"base"}}}}
	b.run(t, "", "explain", "machine/r1u07").want(t, 0, `r1u07  Provisioning, DHCP 3/`+itoa(len(api.Stages()))+`
  It waits for the kernel.�[2J

BootAttempt
  number 2, under way, until 2026-11-21 05:00:00 unless it makes progress; opened 2026-11-21 04:00:00: reprovision
  STAGE     AFTER   TOOK
  PowerOn   1.0s    1.0s
  DHCP      1m03s   1m02s

Decisions, the last 1
  TIME                  QUESTION   ANSWER         WHY
  2026-11-21 04:00:00   dhcp       198.18.0.107   reserved [198.18.0.107]

Events, the last 1
  TIME                  REASON   MESSAGE
  2026-11-21 04:00:00   Retry    again

Config, and which Layer each part comes from
  PART             LAYER   INSTEAD OF
  file /etc/motd   site    base
`)
	var x api.Explanation
	if err := json.Unmarshal([]byte(b.run(t, "", "explain", "machine", "r1u07", "-o", "json").out), &x); err != nil || x.Machine.Metadata.Name != "r1u07" {
		t.Errorf("%v", err)
	}
	b.run(t, "", "explain", "zone", "yellow").want(t, 2, "", "only a Machine can be explained")
	b.run(t, "", "explain", "machine.spec.state").want(t, 0, "machine.spec.state  text\n  What the Machine should be. Maintenance: it keeps running and nothing is done to it. Default: Active.\n  One of Active, Off, Maintenance.\n")
	b.run(t, "", "explain", "machine.spec.stat").want(t, 2, "", `machines.spec has no field "stat"`)
	b.run(t, "", "explain", "subnet.spec.prefixes").want(t, 0, "subnet.spec.prefixes  list of prefix\n  Prefixes of the Subnet; at least one.\n")
}

func TestConsoleLog(t *testing.T) {
	b := newBootd(t)
	b.run(t, "", "console", "r1u07", "--log").want(t, 0, "", "nothing was received from the console of r1u07")
	b.consoleLog.Console = api.NoConsole
	b.run(t, "", "console", "r1u07", "--log").want(t, 0, "", "the BMC of r1u07 has no serial console")
	b.consoleLog.Lines = []api.ConsoleLine{{Time: time.Date(2026, 11, 21, 4, 0, 0, 0, time.Local), Text: "Kernel panic\x1b[2J"}}
	const want = "  2026-11-21 04:00:00  Kernel panic�[2J\n"
	b.run(t, "", "console", "r1u07", "--log").want(t, 0, want)
	b.explain = &api.Explanation{Machine: new(api.Machine), Console: b.consoleLog.Lines}
	if r := b.run(t, "", "explain", "machine/r1u07"); r.code != 0 || !strings.HasSuffix(r.out, "\nConsole, the last 1\n"+want) {
		t.Errorf("%+v", r)
	}
}

func itoa(n int) string { raw, _ := json.Marshal(n); return string(raw) }

func TestDescribe(t *testing.T) {
	b := newBootd(t)
	at := time.Now().Add(-time.Hour)
	b.events = []api.Event{{Time: at, Kind: "Machine", Name: "r1u07", Type: api.Normal, Reason: "Active", Message: "after 1m"}, {Time: at, Kind: "Machine", Name: "r1u08"}}
	b.machine("r1u07", func(m *api.Machine) {
		m.Metadata.Labels = map[string]string{"tier": "app"}
		m.Status = api.MachineStatus{Phase: api.PhaseActive, Power: "On",
			Inventory:  &api.Inventory{Manufacturer: "Dell", Model: "R640", MemoryMiB: 2048},
			Host:       &api.HostStatus{Connected: true, AgentVersion: "v1", NICs: []api.HostNIC{{Name: "prod", MAC: "52:54:00:01:07:01", Addresses: []netip.Prefix{netip.MustParsePrefix("198.18.8.7/24")}}}},
			Requests:   []api.Request{{Verb: api.VerbPower, Argument: "reset", By: "ann", State: api.RequestDone, Time: at}},
			Conditions: api.Conditions{{Type: api.CondBMC, Status: api.True, Reason: "Reachable", Message: "it answers"}}}
	})
	r := b.run(t, "", "describe", "machine", "r1u07")
	for _, part := range []string{"machine/r1u07  Active\n", "labels      tier=app\n", "Spec\n  zone: yellow\n", "Inventory\n  model       Dell R640\n",
		"memory      2.0 GiB\n", "nic        prod 52:54:00:01:07:01 198.18.8.7/24\n", "power reset   ann   Done", "BMCReachable   True ", "Events, the last 1\n"} {
		if !strings.Contains(r.out, part) {
			t.Errorf("lacks %q:\n%s", part, r.out)
		}
	}
	zone := new(api.Zone)
	zone.Metadata.Name, zone.Spec.ASN = "yellow", 64601
	zone.Status.Reflectors = []api.ReflectorStatus{{Machine: "r1u07", State: api.ReflectorServing}}
	zone.Status.Conditions = api.Conditions{{Type: "Ready", Status: api.True}}
	b.store(zone)
	if r := b.run(t, "", "describe", "zone/yellow"); !strings.Contains(r.out, "Status\n  reflectors:\n    - machine: r1u07\n      uid: \"\"\n      state: Serving\n") {
		t.Errorf("%s", r.out)
	}
}

func TestEvents(t *testing.T) {
	b := newBootd(t)
	at := time.Date(2026, 11, 21, 4, 0, 0, 0, time.Local)
	b.events = []api.Event{{Time: at, Kind: "Machine", Name: "r1u07", Type: api.Normal, Reason: "Active", Message: "after\n1m"}, {Time: at, Kind: "Image", Name: "deb", Type: api.Warning, Reason: "FileMissing", Message: "kernel"}}
	b.run(t, "", "events").want(t, 0, "2026-11-21 04:00:00  machine/r1u07     Active          after 1m\n2026-11-21 04:00:00  image/deb         FileMissing     kernel\n")
	b.run(t, "", "events", "image/deb", "-o", "json").want(t, 0, `{"time":`+stamp(at)+`,"kind":"Image","name":"deb","type":"Warning","reason":"FileMissing","message":"kernel"}`+"\n")
	b.run(t, "", "events", "machine", "r1u08").want(t, 0, "")
	b.run(t, "", "events", "server/x").want(t, 2, "", "unknown kind")
}

func stamp(at time.Time) string { raw, _ := json.Marshal(at); return string(raw) }

func TestMachineVerbs(t *testing.T) {
	b := newBootd(t)
	b.machine("r1u07", nil)
	b.machine("r1u08", nil)
	for _, args := range [][]string{{"power", "reset", "r1u07", "r1u08", "--wait"}, {"reprovision", "r1u07"}} {
		if r := b.run(t, "", append([]string{"machine"}, args...)...); r.code != 0 || !strings.HasPrefix(r.out, "MACHINE   RESULT   TIME   MESSAGE\nr1u07     Done") {
			t.Errorf("%+v", r)
		}
	}
	got := b.sent("POST")
	slices.Sort(got)
	if !cmp.Equal(got, []string{"/v1/machines/r1u07/power", "/v1/machines/r1u07/reprovision", "/v1/machines/r1u08/power"}) {
		t.Errorf("%v", got)
	}
	b.run(t, "", "machine", "power", "up", "r1u07").want(t, 2, "", "power up: it may be on, off, reset")
	b.run(t, "", "machine", "power", "on").want(t, 2, "", "want on|off|reset NAME…")
	if r := b.run(t, "", "machine", "inspect", "nope"); r.code != 1 || !strings.Contains(r.out, `Not Found: Machine "nope" does not exist`) {
		t.Errorf("%+v", r)
	}
	b.run(t, "", "machine", "explode").want(t, 2, "", `unknown command "explode": see "weftctl machine --help"`)
}

func TestMachineBoot(t *testing.T) {
	b := newBootd(t)
	b.machine("r1u07", func(m *api.Machine) { m.Spec.Variables = map[string]string{"tier": "db"} })
	b.run(t, "", "machine", "boot", "r1u07").want(t, 1, "r1u07\n", "has no profile")
	b.machine("r1u07", func(m *api.Machine) { m.Spec.Profile, m.Spec.Variables = "worker", map[string]string{"tier": "db"} })
	profile, image := new(api.Profile), new(api.Image)
	profile.Metadata.Name = "worker"
	profile.Spec = api.ProfileSpec{Image: "deb", Layers: []string{"site"}, KernelArguments: []string{"console=ttyS0"}, Variables: map[string]string{"tier": "app", "x": "y"}}
	b.store(profile)
	b.run(t, "", "machine", "boot", "r1u07").want(t, 1, "r1u07\n", `there is no Image "deb"`)
	image.Metadata.Name = "deb"
	image.Spec = api.ImageSpec{Version: "12", OS: "debian", Files: map[string]api.ImageFile{"kernel": {SHA256: api.SHA256(strings.Repeat("ab", 32))}}}
	b.store(image)
	r := b.run(t, "", "machine", "boot", "r1u07")
	for _, part := range []string{"boots              live, from the network", "image              deb 12 (debian, amd64)", "kernel             sha256:ab",
		"variables          tier=db, x=y", "profile arguments  console=ttyS0"} {
		if !strings.Contains(r.out, part) {
			t.Errorf("lacks %q:\n%s", part, r.out)
		}
	}
}

func TestEscape(t *testing.T) {
	for _, c := range []struct {
		keys, send   string
		detach, help bool
	}{
		{"ls\r", "ls\r", false, false},
		{"~.", "", true, false},
		{"a~.", "a~.", false, false},
		{"a\r~.b", "a\r", true, false},
		{"~~x", "~x", false, false},
		{"~x", "~x", false, false},
		{"~?\r~~.", "\r~.", false, true},
		{"\n~?~.", "\n", true, true},
	} {
		for _, chunk := range []int{1, len(c.keys)} { // however the keys arrive
			e := escape{lineStart: true}
			var send string
			var detach, help bool
			for i := 0; i < len(c.keys) && !detach; i += chunk {
				s, d, h := e.filter([]byte(c.keys[i : i+chunk]))
				send, detach, help = send+string(s), d, help || h
			}
			if send != c.send || detach != c.detach || help != c.help {
				t.Errorf("%q in %d: sent %q, detach %v, help %v", c.keys, chunk, send, detach, help)
			}
		}
	}
}

func TestConsole(t *testing.T) {
	b := newBootd(t)
	heard := make(chan string, 1)
	b.console = func(rw *bufio.ReadWriter) {
		_, _ = rw.WriteString("login: ")
		_ = rw.Flush()
		line, _ := rw.ReadString('\n')
		heard <- line
		_, _ = rw.WriteString("welcome\r\n")
		_ = rw.Flush()
		_, _ = rw.ReadByte() // until weftctl is gone, or the end of its input
	}
	keys, typed := io.Pipe()
	out, notes, done := newLines(), newLines(), make(chan int, 1)
	go func() {
		done <- Run(t.Context(), Process{Args: []string{"console", "r1u07", "--server", "unix://" + b.socket}, Env: func(string) string { return "" }, In: keys, Out: out, Err: notes})
	}()
	notes.next(t, "connected to the console of r1u07; detach with ~.")
	_, _ = io.WriteString(typed, "root\n")
	if line := <-heard; line != "root\n" {
		t.Errorf("the console heard %q", line)
	}
	out.next(t, "login: welcome")
	_, _ = io.WriteString(typed, "~.")
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
	b.console = func(rw *bufio.ReadWriter) { _, _ = rw.WriteString("bye"); _ = rw.Flush() }
	if r := b.run(t, "", "console", "r1u07"); r.code != 0 || r.out != "bye" {
		t.Errorf("%+v", r)
	}
	if r := b.run(t, "", "guest", "console", "web"); r.code != 0 || r.out != "bye" || !strings.Contains(r.err, "connected to the console of web") {
		t.Errorf("%+v", r)
	}
	b.refuse["GET /v1/machines/r1u07/console"] = &api.Problem{Status: 502, Title: "Bad Gateway", Detail: "open the console of r1u07: refused"}
	b.run(t, "", "console", "r1u07").want(t, 1, "", "console of machine/r1u07: Bad Gateway: open the console of r1u07: refused")
}
