package guest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// BenchmarkGuests is `make bench-guests`. BENCH lines go to standard output,
// what explains them to standard error; the runs of all sides take turns.
func BenchmarkGuests(b *testing.B) {
	binary := buildNodeagent(b)
	b.Run("start", func(b *testing.B) { benchmarkStart(b, binary) })
	b.Run("many", func(b *testing.B) { benchmarkMany(b, binary) })
}

func remark(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// figure prints a line whose ratio is not to be above 1.
func figure(name, unit string, ours float64, peer string, theirs float64) {
	ratio, verdict := ours/theirs, "short"
	if ratio <= 1 {
		verdict = "ok"
	}
	fmt.Printf("BENCH guests-%s ours=%.4g%s %s=%.4g%s ratio=%.2f bar=<=1.00 %s\n", name, ours, unit, peer, theirs, unit, ratio, verdict)
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

func buildNodeagent(b *testing.B) string {
	b.Helper()
	nstest.Root(b, "QEMU runs as other users")
	binary := filepath.Join(openDir(b), "nodeagent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "../../cmd/nodeagent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("build nodeagent: %v\n%s", err, out)
	}
	return binary
}

// openDir is a directory with a short path in which every user may run programs.
func openDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("", "gb")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// tellingQEMU is a QEMU that writes on its standard error when its guest runs.
func tellingQEMU(b *testing.B) string {
	b.Helper()
	real, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		b.Skip(err)
	}
	path := filepath.Join(openDir(b), "qemu-system-x86_64")
	if err := os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\nexec %s -msg timestamp=on -trace vm_state_notify \"$@\"\n", real), 0o755); err != nil {
		b.Fatal(err)
	}
	return path
}

// firstRun is when a QEMU's guest first ran, by the log that it wrote since then.
func firstRun(log string, since time.Time) (time.Time, bool) {
	raw, err := os.ReadFile(log)
	if err != nil {
		return time.Time{}, false
	}
	for _, m := range regexp.MustCompile(`(?m)^\d+@(\d+)\.(\d{6}):vm_state_notify running 1 `).FindAllSubmatch(raw, -1) {
		seconds, _ := strconv.ParseInt(string(m[1]), 10, 64) // digits
		micros, _ := strconv.ParseInt(string(m[2]), 10, 64)
		if at := time.Unix(seconds, micros*1000); at.After(since) {
			return at, true
		}
	}
	return time.Time{}, false
}

func untilRun(b *testing.B, log string, since time.Time) float64 {
	b.Helper()
	for end := since.Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if at, ok := firstRun(log, since); ok {
			return at.Sub(since).Seconds()
		}
	}
	raw, _ := os.ReadFile(log)
	b.Fatalf("its guest has not run within a minute; it says: %s", raw)
	return 0
}

// benchmarkStart is from a part that asks for a Guest to run until its QEMU
// runs the first instruction, beside the same QEMU with the same open files
// started by hand, and beside `virsh start` of an alike domain.
func benchmarkStart(b *testing.B, binary string) {
	const runs = 9
	h := newHost(b)
	program := tellingQEMU(b)
	h.with = func(o *Options) { o.Program, o.Launch = program, []string{binary, "guest-exec"} }
	h.timing = defaultTiming()
	h.timing.force = 50 * time.Millisecond // of stops, which are not measured
	h.run()
	g := bare(h)
	g.StopTimeout = api.Duration(time.Millisecond)
	set := func(state api.GuestState) {
		g.State = state
		h.want(part("web", uid1, g))
	}
	log := filepath.Join(h.guestDir(uid1), "qemu.log")
	start := func() (took, cpu float64) {
		before, began := ownCPU(b), time.Now()
		set("Running")
		took = untilRun(b, log, began)
		h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
		id, err := launch.ReadIdentity(h.runDir(uid1))
		if err != nil {
			b.Fatal(err)
		}
		return took, ownCPU(b) - before + cpuOf(b, id.PID)
	}
	stop := func() {
		set("Stopped")
		h.wait("it is stopped", h.is("guest/web", api.PartApplied, "Stopped"))
	}
	first, _ := start()
	remark("start: the first, with its disk to be made: %.3f s", first)
	stop()
	libvirt := startLibvirt(b)
	var ours, hand, virsh, oursCPU, handCPU []float64
	for range runs {
		took, cpu := start()
		ours, oursCPU = append(ours, took), append(oursCPU, cpu)
		stop()
		took, cpu = startByHand(b, h, g, program)
		hand, handCPU = append(hand, took), append(handCPU, cpu)
		if libvirt != nil {
			virsh = append(virsh, libvirt.start())
		}
	}
	remark("start: nodeagent %.3f s, by hand %.3f s, virsh %.3f s", ours, hand, virsh)
	remark("start: of the processors nodeagent and QEMU take %.3f s, QEMU by hand %.3f s", oursCPU, handCPU)
	figure("start-overhead", "ms", 1000*(median(ours)-median(hand)), "limit", 50)
	figure("start-overhead-cpu", "ms", 1000*(median(oursCPU)-median(handCPU)), "limit", 50)
	if libvirt != nil {
		figure("start", "ms", 1000*median(ours), "virsh", 1000*median(virsh))
	}
}

// ownCPU is what this process and its children have taken of the processors, in
// seconds. A machine that is busy with other things changes it little.
func ownCPU(b *testing.B) float64 {
	b.Helper()
	var sum float64
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		sum += float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
	}
	return sum
}

// cpuOf is what a QEMU has taken of the processors but for its guest.
func cpuOf(b *testing.B, pid int) float64 {
	b.Helper()
	threads, err := procfs.AllThreads(pid)
	if err != nil {
		b.Fatal(err)
	}
	var sum float64
	for _, t := range threads {
		comm, err := t.Comm()
		stat, statErr := t.Schedstat()
		if err == nil && statErr == nil && !strings.HasPrefix(comm, "CPU ") { // else it has just ended
			sum += float64(stat.RunningNanoseconds) / 1e9
		}
	}
	return sum
}

// startByHand starts the QEMU of a Guest that is stopped, as nodeagent would make
// it, and lets it run at once.
func startByHand(b *testing.B, h *host, part *api.GuestPart, program string) (took, cpu float64) {
	b.Helper()
	h.handler.mu.Lock()
	g := h.handler.guests[uid1]
	h.handler.mu.Unlock()
	var files opened // anew each time: QEMU's lock on a disk lasts as long as that file is open
	defer files.close()
	vm, err := g.builder.machine(b.Context(), part, qemu.TCG, nil, &files)
	if err != nil {
		b.Fatal(err)
	}
	args, handed, err := vm.Command()
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(h.dir, "by-hand.log")
	log, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(program, slices.DeleteFunc(args, func(a string) bool { return a == "-S" })...)
	cmd.Stderr = log
	cmd.ExtraFiles = append(make([]*os.File, qemu.FirstFile-3), handed...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	took = untilRun(b, path, began)
	return took, cpuOf(b, cmd.Process.Pid)
}

// libvirt is a libvirtd of its own, with a domain.
type libvirt struct {
	b      *testing.B
	socket string
	log    string
}

// startLibvirt is nil where there is no libvirtd.
func startLibvirt(b *testing.B) *libvirt {
	b.Helper()
	if _, err := exec.LookPath("libvirtd"); err != nil {
		fmt.Println("SKIP guests-start beside virsh: libvirtd is missing: apt-get install libvirt-daemon-system libvirt-clients")
		return nil
	}
	dir := openDir(b)
	l := &libvirt{b: b, socket: filepath.Join(dir, "run", "libvirt-sock"), log: filepath.Join(dir, "log", "qemu", "bench.log")}
	// What it would find and leave on the machine is under mounts of its own.
	script := "set -e; mount --make-rprivate /; umount -R -l /sys/fs/cgroup || true\n" // where there are no controllers it wants one
	for name, path := range map[string]string{"etc": "/etc/libvirt", "run": "/run/libvirt", "lib": "/var/lib/libvirt", "log": "/var/log/libvirt", "cache": "/var/cache/libvirt"} {
		own := filepath.Join(dir, name)
		if err := errors.Join(os.Mkdir(own, 0o755), os.MkdirAll(path, 0o755)); err != nil {
			b.Fatal(err)
		}
		script += fmt.Sprintf("mount --bind %s %s\n", own, path)
	}
	conf := "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\nstdio_handler = \"file\"\ncgroup_controllers = []\nnamespaces = []\nremember_owner = 0\n"
	disk := filepath.Join(dir, "root.qcow2")
	domain := fmt.Sprintf(`<domain type='qemu'><name>bench</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
 <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
 <devices><emulator>%s</emulator><controller type='usb' model='none'/>
 <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/><target dev='vda' bus='virtio'/></disk>
 <serial type='pty'/><memballoon model='virtio'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng></devices></domain>`, tellingQEMU(b), disk)
	for path, text := range map[string]string{"etc/qemu.conf": conf, "etc/libvirtd.conf": "auth_unix_rw = \"none\"\n", "bench.xml": domain} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", disk, "1M").CombinedOutput(); err != nil {
		b.Fatalf("qemu-img: %v: %s", err, out)
	}
	said, err := os.Create(filepath.Join(dir, "libvirtd.log"))
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", script+"exec libvirtd")
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_, _ = l.virsh("destroy", "bench") // it may not run
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = said.Close()
		if b.Failed() {
			raw, _ := os.ReadFile(said.Name())
			b.Logf("libvirtd: %s", raw)
		}
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		out, err := l.virsh("define", filepath.Join(dir, "bench.xml"))
		if err == nil {
			return l
		}
		if time.Now().After(end) {
			b.Fatalf("virsh define: %v: %s", err, out)
		}
	}
}

func (l *libvirt) virsh(args ...string) (string, error) {
	out, err := command.Output(exec.Command("virsh", append([]string{"-q", "-c", "qemu:///system?socket=" + l.socket}, args...)...))
	return string(out), err
}

func (l *libvirt) start() float64 {
	l.b.Helper()
	began := time.Now()
	if out, err := l.virsh("start", "bench"); err != nil {
		l.b.Fatalf("virsh start: %v: %s", err, out)
	}
	took := untilRun(l.b, l.log, began)
	if out, err := l.virsh("destroy", "bench"); err != nil {
		l.b.Fatalf("virsh destroy: %v: %s", err, out)
	}
	return took
}

// benchmarkMany is the built nodeagent with a hundred Guests that do nothing: its
// memory, what it takes of the processors, and how long its successor needs to
// have all of them again after kill -9.
func benchmarkMany(b *testing.B, binary string) {
	const guests, rest, kills = 100, time.Minute, 5
	a := newBenchAgent(b, binary)
	a.cache(guests)
	began := time.Now()
	a.start()
	a.untilRunning(guests)
	remark("many: %d Guests run after %.1f s", guests, time.Since(began).Seconds())
	var adopted []float64
	for range kills {
		a.kill()
		began := time.Now()
		a.start()
		a.untilRunning(guests)
		adopted = append(adopted, time.Since(began).Seconds())
	}
	remark("many: adopted in %.3f s", adopted)
	time.Sleep(5 * time.Second) // what comes after a start
	before, began := a.stat(), time.Now()
	time.Sleep(rest)
	after := a.stat()
	status, err := a.proc().NewStatus()
	if err != nil {
		b.Fatal(err)
	}
	remark("many: at rest for %s; at most %.1f MiB resident", time.Since(began).Truncate(time.Second), float64(status.VmHWM)/(1<<20))
	figure("memory-100", "MiB", float64(after.ResidentMemory())/(1<<20), "limit", 64)
	figure("rest-100", "%", 100*(after.CPUTime()-before.CPUTime())/time.Since(began).Seconds(), "limit", 2)
	figure("adopt-100", "s", median(adopted), "limit", 2)
}

// benchAgent is the built nodeagent, in a network namespace of its own, without
// a bootd: it works from the HostSpec that is in its cache.
type benchAgent struct {
	b           *testing.B
	binary, dir string
	log         *os.File
	cmd         *exec.Cmd
}

func newBenchAgent(b *testing.B, binary string) *benchAgent {
	b.Helper()
	a := &benchAgent{b: b, binary: binary, dir: openDir(b)}
	var err error
	if a.log, err = os.Create(filepath.Join(a.dir, "log")); err != nil {
		b.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		b.Fatal(err)
	}
	config, err := yaml.Marshal(api.AgentConfig{Machine: "bench", UID: "bench", AttemptID: "a1", API: []string{"https://198.18.0.250:8443"},
		CA: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))})
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.dir, "nodeagent.yaml"), config, 0o600); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		a.kill()
		runs, _ := filepath.Glob(filepath.Join(a.dir, "run", "guests", "*"))
		for _, dir := range runs {
			if id, err := launch.ReadIdentity(dir); err == nil {
				end(id)
			}
		}
		_ = a.log.Close()
		if raw, err := os.ReadFile(a.log.Name()); err == nil && b.Failed() {
			b.Logf("nodeagent: %s", raw[max(0, len(raw)-4000):])
		}
	})
	return a
}

// cache writes a HostSpec with as many Guests as the agent keeps it, and the
// kernel that they boot to where it keeps images.
func (a *benchAgent) cache(guests int) {
	b := a.b
	b.Helper()
	kernel := haltingKernel()
	sum := sha256.Sum256(kernel)
	digest := hex.EncodeToString(sum[:])
	type entry struct {
		Digest string `json:"digest"`
		UID    string `json:"uid"`
	}
	index := struct {
		Epoch    int64            `json:"epoch"`
		Revision int64            `json:"revision"`
		Parts    map[string]entry `json:"parts"`
	}{1, 1, map[string]entry{}}
	write := func(path string, content []byte) {
		b.Helper()
		path = filepath.Join(a.dir, "state", path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, content, 0o600)); err != nil {
			b.Fatal(err)
		}
	}
	add := func(name, uid string, value any) {
		body, err := json.Marshal(value)
		if err != nil {
			b.Fatal(err)
		}
		d := api.PartDigest(body)
		index.Parts[name] = entry{d, uid}
		write("hostspec/parts/"+d+".json", body)
	}
	add(api.PartBase, "bench", api.BasePart{UID: "bench"})
	for i := range guests {
		uid := fmt.Sprintf("guest-%d", i)
		add(api.GuestPartName(fmt.Sprint("g", i)), uid, api.GuestPart{UID: uid, CPUs: 1, Memory: quantity("64Mi"), Machine: qemu.MicroVM, State: "Running",
			Kernel: &api.GuestKernel{Kernel: api.SHA256(digest)}, Disks: []api.GuestDisk{{Name: "root", Size: quantity("1Mi")}}})
	}
	body, err := json.Marshal(index)
	if err != nil {
		b.Fatal(err)
	}
	write("guests/images/"+digest, kernel)
	if err := os.Chmod(filepath.Join(a.dir, "state", "guests", "images", digest), 0o644); err != nil { // QEMU opens it anew
		b.Fatal(err)
	}
	write("hostspec/index", append([]byte(api.PartDigest(body)+"\n"), body...))
}

// haltingKernel is the least that QEMU takes for a Linux kernel (the kernel's
// Documentation/arch/x86/boot.rst): a sector of header, and one that is jumped to,
// which halts for good.
func haltingKernel() []byte {
	k := make([]byte, 4096)
	k[0x1f1] = 1 // sectors of setup after the first
	binary.LittleEndian.PutUint16(k[0x1fe:], 0xaa55)
	copy(k[0x200:], []byte{0xeb, 0x66}) // to 0x268, behind the header
	copy(k[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(k[0x206:], 0x0203)
	k[0x211] = 1                                    // loaded high
	copy(k[0x268:], []byte{0xfa, 0xf4, 0xeb, 0xfc}) // cli; hlt; again
	return k
}

func (a *benchAgent) start() {
	a.b.Helper()
	a.cmd = exec.Command(a.binary, "run", "--config", filepath.Join(a.dir, "nodeagent.yaml"), "--state-dir", filepath.Join(a.dir, "state"), "--run-dir", filepath.Join(a.dir, "run"))
	a.cmd.Stderr = a.log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := a.cmd.Start(); err != nil {
		a.b.Fatal(err)
	}
}

func (a *benchAgent) kill() {
	if a.cmd != nil && a.cmd.ProcessState == nil {
		_ = a.cmd.Process.Kill()
		_ = a.cmd.Wait()
	}
}

// untilRunning waits until this very agent says that all of its Guests run.
func (a *benchAgent) untilRunning(guests int) {
	a.b.Helper()
	var s nodeagent.Status
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		s, _ = nodeagent.ReadStatus(filepath.Join(a.dir, "state"), filepath.Join(a.dir, "run")) // not there yet
		running := 0
		for _, p := range s.Host.Parts {
			if p.State == api.PartApplied && p.Guest != nil && p.Guest.State == "Running" {
				running++
			}
		}
		if s.PID == a.cmd.Process.Pid && running == guests {
			return
		}
	}
	raw, _ := json.Marshal(s.Host.Parts)
	a.b.Fatalf("not all Guests run: %s", bytes.TrimSpace(raw))
}

func (a *benchAgent) proc() procfs.Proc {
	p, err := procfs.NewProc(a.cmd.Process.Pid)
	if err != nil {
		a.b.Fatal(err)
	}
	return p
}

func (a *benchAgent) stat() procfs.ProcStat {
	s, err := a.proc().Stat()
	if err != nil {
		a.b.Fatal(err)
	}
	return s
}
