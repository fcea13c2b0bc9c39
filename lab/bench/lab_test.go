package bench

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/lab"
	"github.com/rackweft/rackweft/lab/rig"
)

func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }

// The bars of the issue.
const (
	bootBar       = 1.10 // of the floor, beside the firmware's time
	bootdBarMiB   = 120
	agentBarMiB   = 40
	agentMemory   = "nodeagent VmRSS:"
	manifestOff   = "state: Off"
	manifestOn    = "state: Active"
	memoryLayer   = "bench-memory"
	profileLayers = "layers: [site, zone-yellow, worker]"
)

func machines() []lab.MachineConfig {
	return []lab.MachineConfig{
		{Name: "bios", Unit: 1, Firmware: lab.BIOS},
		{Name: "uefi", Unit: 2, Firmware: lab.UEFI},
	}
}

// BenchmarkLab measures boots one at a time, in turn by the whole path and directly. RUNS (3) is how many of
// each; figures are their medians. BENCH lines go to standard output, what explains them to standard error.
func BenchmarkLab(b *testing.B) {
	runs := 3
	if set := os.Getenv("RUNS"); set != "" {
		n, err := strconv.Atoi(set)
		if err != nil || n < 1 {
			b.Fatalf("RUNS=%q: how many boots of each kind, from 1", set)
		}
		runs = n
	}
	r := rig.Up(b, rig.Options{Machines: machines(), Manifests: func(name string, content []byte) []byte {
		return bytes.ReplaceAll(content, []byte(manifestOn), []byte(manifestOff))
	}})
	sizes(b, r)
	for _, m := range machines() {
		benchmarkBoot(b, r, m.Name, runs)
	}
	benchmarkMemory(b, r)
	b.ReportMetric(0, "ns/op") // an iteration is no figure of any use
}

func note(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func figure(name, ours, peer string, ratio, bar float64) {
	verdict := "ok"
	if ratio > bar {
		verdict = "short"
	}
	fmt.Printf("BENCH %s ours=%s %s ratio=%.2f bar=<=%.2f %s\n", name, ours, peer, ratio, bar, verdict)
}

// boot is what one boot took.
type boot struct {
	total    time.Duration // from the processor's first instruction to Active
	firmware time.Duration // of it, until the boot script was served
	stages   string
}

func benchmarkBoot(b *testing.B, r *rig.Rig, machine string, runs int) {
	var ours, floor []boot
	for range runs {
		ours = append(ours, measure(b, r, machine))
		note("%s: the whole path: %s", machine, ours[len(ours)-1].stages)
		r.Rack.Machine(machine).SetDirect(direct(b, r, machine))
		floor = append(floor, measure(b, r, machine))
		note("%s: direct: %s", machine, floor[len(floor)-1].stages)
		r.Rack.Machine(machine).SetDirect(nil)
	}
	total := func(x boot) time.Duration { return x.total }
	least := median(floor, total)
	firmware := median(ours, func(x boot) time.Duration { return x.firmware })
	beside := median(ours, func(x boot) time.Duration { return x.total - x.firmware })
	note("%s: firmware (power-on until the boot script is served): %.1fs, not in the ratio", machine, firmware.Seconds())
	figure("lab-"+machine, fmt.Sprintf("%.1fs", median(ours, total).Seconds()), fmt.Sprintf("floor=%.1fs", least.Seconds()),
		beside.Seconds()/least.Seconds(), bootBar)
}

// measure boots a machine whose power is off and whose disk is empty, and turns it off again.
func measure(b *testing.B, r *rig.Rig, machine string) boot {
	b.Helper()
	m := r.Rack.Machine(machine)
	r.WaitPhase(machine, api.PhaseAvailable)
	if err := m.WipeDisk(); err != nil {
		b.Fatal(err)
	}
	r.SetState(machine, api.StateActive)
	status := r.WaitActive(machine).Status
	processor, err := m.CPUTime()
	if err != nil {
		b.Fatal(err)
	}
	took := read(status.Attempt, m.PoweredOn())
	took.stages += fmt.Sprintf("; %.1fs of processor time", processor.Seconds())
	turnOff(b, r, machine)
	return took
}

func read(a *api.BootAttempt, on time.Time) boot {
	took := boot{total: a.Finished.Sub(on)}
	var said []string
	for _, s := range a.Stages {
		after := s.Time.Sub(on)
		if s.Stage == api.StageScript {
			took.firmware = after
		}
		if after > 0 {
			said = append(said, fmt.Sprintf("%s %.1fs", s.Stage, after.Seconds()))
		}
	}
	took.stages = fmt.Sprintf("%s, Active %.1fs", strings.Join(said, ", "), took.total.Seconds())
	return took
}

func turnOff(b *testing.B, r *rig.Rig, machine string) {
	b.Helper()
	r.SetState(machine, api.StateOff)
	if err := r.Rack.Machine(machine).PullPower(); err != nil { // it need not shut down in order
		b.Fatal(err)
	}
	r.WaitPhase(machine, api.PhaseAvailable)
}

var commandLine = regexp.MustCompile(`Kernel command line: ([^\r\n]+)`)

// direct boots what the machine booted last, with the arguments that its kernel said it was given.
func direct(b *testing.B, r *rig.Rig, machine string) *lab.DirectBoot {
	b.Helper()
	console, err := os.ReadFile(r.Rack.Machine(machine).ConsoleLog())
	if err != nil {
		b.Fatal(err)
	}
	found := commandLine.FindAllSubmatch(console, -1)
	if found == nil {
		b.Fatalf("the console of %s has no kernel command line", machine)
	}
	return &lab.DirectBoot{
		Kernel: filepath.Join(r.ImageDir, "vmlinuz"), Initrd: filepath.Join(r.ImageDir, "initrd"),
		Append: string(found[len(found)-1][1]),
	}
}

// memoryLayerManifest makes a host say on its console how much memory nodeagent holds. No machine whose time
// is taken has it.
const memoryLayerManifest = `apiVersion: rackweft/v1alpha1
kind: Layer
metadata: {name: ` + memoryLayer + `}
spec:
  butane: |
    systemd:
      units:
        - name: ` + memoryLayer + `.service
          enabled: true
          contents: |
            [Unit]
            After=nodeagent.service

            [Service]
            ExecStart=/bin/sh -c 'while sleep 2; do echo nodeagent $$(grep VmRSS /proc/$$(systemctl show -P MainPID nodeagent.service)/status) >/dev/console; done'

            [Install]
            WantedBy=multi-user.target
`

// benchmarkMemory has every machine Active, and reads what the two daemons hold then.
func benchmarkMemory(b *testing.B, r *rig.Rig) {
	profile, err := os.ReadFile(filepath.Join(r.Rack.Dir(), "manifests", "profile.yaml"))
	if err != nil {
		b.Fatal(err)
	}
	with := strings.Replace(string(profile), profileLayers, strings.TrimSuffix(profileLayers, "]")+", "+memoryLayer+"]", 1)
	if with == string(profile) {
		b.Fatalf("profile.yaml has no %q", profileLayers)
	}
	r.Apply(r.File("bench-layer.yaml", memoryLayerManifest), r.File("bench-profile.yaml", with))
	for _, m := range machines() {
		r.SetState(m.Name, api.StateActive)
	}
	var agents []int
	for _, m := range machines() {
		r.WaitActive(m.Name)
		agents = append(agents, agentRSS(b, r, m.Name))
	}
	report("lab-bootd-rss", procKB(b, r.Rack.BootdPID(), "VmRSS"), bootdBarMiB)
	report("lab-nodeagent-rss", slices.Max(agents), agentBarMiB)
	note("bootd: at most %.1f MiB resident since it started", float64(procKB(b, r.Rack.BootdPID(), "VmHWM"))/1024)
}

func report(name string, kB, limitMiB int) {
	MiB := float64(kB) / 1024
	figure(name, fmt.Sprintf("%.1fMiB", MiB), fmt.Sprintf("limit=%dMiB", limitMiB), MiB/float64(limitMiB), 1)
}

var agentLine = regexp.MustCompile(regexp.QuoteMeta(agentMemory) + `\s+(\d+) kB`)

// agentRSS waits until the host has said several times how much nodeagent holds, and takes the most, in kB.
func agentRSS(b *testing.B, r *rig.Rig, machine string) int {
	b.Helper()
	const enough = 8
	var most int
	r.WaitMachine(machine, "memory of nodeagent on the console", func(*api.Machine) bool {
		console, err := os.ReadFile(r.Rack.Machine(machine).ConsoleLog())
		if err != nil {
			b.Fatal(err)
		}
		said := agentLine.FindAllSubmatch(console, -1)
		for _, one := range said {
			kB, err := strconv.Atoi(string(one[1]))
			if err != nil {
				b.Fatal(err)
			}
			most = max(most, kB)
		}
		return len(said) >= enough
	})
	return most
}

// procKB reads a field of proc_pid_status(5).
func procKB(b *testing.B, pid int, field string) int {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			kB, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			if err != nil {
				b.Fatal(err)
			}
			return kB
		}
	}
	b.Fatalf("/proc/%d/status has no %s", pid, field)
	return 0
}

func sizes(b *testing.B, r *rig.Rig) {
	b.Helper()
	for _, program := range []string{"bootd", "nodeagent", "weftctl"} {
		info, err := os.Stat(r.Binaries.Path(program))
		if err != nil {
			b.Fatal(err)
		}
		note("%s: %.1f MiB on disk", program, float64(info.Size())/(1<<20))
	}
}

func median[T any, V cmp.Ordered](of []T, by func(T) V) V {
	var values []V
	for _, one := range of {
		values = append(values, by(one))
	}
	slices.Sort(values)
	return values[len(values)/2] // of an even number, the worse of the two in the middle
}
