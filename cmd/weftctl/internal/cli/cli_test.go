package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
	"github.com/rackweft/rackweft/lab"
)

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		err  string
	}{
		{[]string{"version"}, 0, ""},
		{nil, 0, ""},
		{[]string{"--help"}, 0, ""},
		{[]string{"frobnicate"}, 2, `unknown command "frobnicate"`},
		{[]string{"get", "--frob"}, 2, "unknown flag: --frob"},
		{[]string{"image", "import", "x"}, 2, "want NAME and the DIRECTORY"},
		{[]string{"image", "exterminate"}, 2, "unknown command"},
		{[]string{"version", "x"}, 2, "unknown command"},
		{[]string{"get", "machines", "--server", "ftp://x"}, 2, "want unix:///path or https://host:8443"},
		{[]string{"get", "machines", "--cert", "x"}, 2, "--cert and --key go together"},
		{[]string{"get", "machines", "--token-file", "/nope"}, 2, "read the token: open /nope"},
		{[]string{"get", "machines", "--server", "unix:///nope/s"}, 1, "error: no bootd answers at unix:///nope/s (connect: no such file or directory); is bootd running here"},
		{[]string{"get", "machines", "--server", "https://127.0.0.1:1"}, 1, "no bootd answers at https://127.0.0.1:1 (connect: connection refused)"},
	} {
		r := runWith(t, t.Context(), map[string]string{}, "", c.args...)
		if r.code != c.code || !strings.Contains(r.err, c.err) || c.code == 0 && r.out == "" {
			t.Errorf("%v: exit code %d, want %d: %s", c.args, r.code, c.code, r.err)
		}
		if c.code != 0 && strings.Count(r.err, "\n") != 1 {
			t.Errorf("%v: the error is not one line: %q", c.args, r.err)
		}
	}
}

func TestWhereBootdIs(t *testing.T) {
	home := t.TempDir()
	if err := os.MkdirAll(filepath.Join(home, ".config", "rackweft"), 0o700); err != nil {
		t.Fatal(err)
	}
	token := write(t, home, "token", "from-file\n")
	write(t, filepath.Join(home, ".config", "rackweft"), "weftctl.yaml", "server: https://file:8443\nca: ca.crt\ncert: /c\nkey: /k\ntokenFile: "+token+"\n")
	env := map[string]string{"HOME": home}
	get := func() connection {
		t.Helper()
		c, err := connection{}.resolve(func(k string) string { return env[k] })
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if diff := cmp.Diff(connection{Server: "https://file:8443", CA: filepath.Join(home, ".config", "rackweft", "ca.crt"), Cert: "/c", Key: "/k", Token: "from-file"}, get()); diff != "" {
		t.Error(diff)
	}
	env["RACKWEFT_SERVER"], env["RACKWEFT_TOKEN"] = "https://env:8443", "from-env"
	if c := get(); c.Server != "https://env:8443" || c.Token != "from-env" {
		t.Errorf("%+v", c)
	}
	c, err := connection{Server: "unix:///flag", Cert: "/fc", Key: "/fk", TokenFile: token}.resolve(func(k string) string { return env[k] })
	if err != nil || c.Server != "unix:///flag" || c.Cert != "/fc" || c.Token != "from-file" {
		t.Errorf("%+v %v", c, err)
	}
	write(t, filepath.Join(home, ".config", "rackweft"), "weftctl.yaml", "servr: x\n")
	if _, err := (connection{}).resolve(func(k string) string { return env[k] }); err == nil || !strings.Contains(err.Error(), "weftctl.yaml: /servr: unknown field") {
		t.Errorf("%v", err)
	}
	env = map[string]string{}
	if c := get(); c.Server != localServer(defaultServer, labServer) {
		t.Errorf("%+v", c)
	}
	// A lab is found where no bootd of the machine's own is.
	own, rack := "unix://"+filepath.Join(home, "own.sock"), "unix://"+filepath.Join(home, "rack.sock")
	for _, c := range []struct{ make, want string }{{"", own}, {"rack.sock", rack}, {"own.sock", own}} {
		if c.make != "" {
			write(t, home, c.make, "")
		}
		if got := localServer(own, rack); got != c.want {
			t.Errorf("with %q: %s, want %s", c.make, got, c.want)
		}
	}
}

func TestUnauthorized(t *testing.T) {
	b := newBootd(t)
	b.refuse["GET /v1/machines"] = &api.Problem{Status: 401, Title: "Unauthorized"}
	b.run(t, "", "get", "machines").want(t, 1, "", "Unauthorized; say who you are with --cert and --key")
}

func TestInterrupt(t *testing.T) {
	b := newBootd(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	runWith(t, ctx, map[string]string{"RACKWEFT_SERVER": "unix://" + b.socket}, "", "get", "machines").want(t, 1, "", "error: interrupted\n")
}

func TestCompletion(t *testing.T) {
	b := newBootd(t)
	b.machine("r1u07", nil)
	b.machine("r1u08", nil)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"get", "machines", ""}, "r1u07\nr1u08\n:4\n"},
		{[]string{"describe", "machine/"}, "machine/r1u07\nmachine/r1u08\n:4\n"},
		{[]string{"machine", "power", ""}, "on\noff\nreset\n:4\n"},
		{[]string{"machine", "power", "on", ""}, "r1u07\nr1u08\n:4\n"},
		{[]string{"console", ""}, "r1u07\nr1u08\n:4\n"},
		{[]string{"get", "machines", "-o", ""}, "table\nwide\njson\nyaml\nname\n:4\n"},
	} {
		if r := b.run(t, "", append([]string{"__complete"}, c.args...)...); r.out != c.want {
			t.Errorf("%v: %q", c.args, r.out)
		}
	}
	if r := runWith(t, t.Context(), map[string]string{"RACKWEFT_SERVER": "unix:///nope"}, "", "__complete", "get", "machines", ""); r.out != ":4\n" {
		t.Errorf("without a bootd: %q", r.out)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := b.run(t, "", "completion", shell); r.code != 0 || len(r.out) < 1000 {
			t.Errorf("%s: %d, %d bytes", shell, r.code, len(r.out))
		}
	}
}

func TestRolesOfFiles(t *testing.T) {
	for name, want := range map[string]string{
		"vmlinuz": "kernel", "vmlinuz-6.1.0-56-amd64": "kernel", "kernel": "kernel", "kernel.img": "kernel", "bzImage": "kernel",
		"fedora-coreos-42.20251109.3.0-live-kernel.x86_64": "kernel", "fedora-coreos-40.20240906.3.0-live-kernel-x86_64": "kernel", "flatcar_production_pxe.vmlinuz": "kernel",
		"initrd": "initrd", "initrd.img": "initrd", "initrd.img-6.1.0": "initrd", "initramfs.cpio.zst": "initrd",
		"flatcar_production_pxe_image.cpio.gz": "initrd", "fedora-coreos-42.20251109.3.0-live-initramfs.x86_64.img": "initrd",
		"rootfs.squashfs": "rootfs", "root.squashfs": "rootfs", "rootfs.img": "rootfs", "fedora-coreos-42.20251109.3.0-live-rootfs.x86_64.img": "rootfs",
		"disk.img": "disk", "disk.raw": "disk", "debian-12-generic-amd64.qcow2": "disk", "flatcar_production_image.bin.bz2": "disk", "x.raw.xz": "disk",
		"SHA256SUMS": "", "README": "", "vmlinuz.sig": "", "initrd.sha256": "", "config.json": "",
	} {
		if got := roleOf(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestImageImport(t *testing.T) {
	b := newBootd(t)
	dir := t.TempDir()
	t.Chdir(dir)
	write(t, dir, "vmlinuz", "k")
	write(t, dir, "initrd", "i")
	write(t, dir, "rootfs.squashfs", "r")
	write(t, dir, "SHA256SUMS", "…")
	r := b.run(t, "", "image", "import", "deb", ".", "--os", "debian", "--ignition-version", "3.6.0")
	r.want(t, 0, "image/deb created\n", "upload initrd", "upload kernel", "upload rootfs")
	got := b.objects["images/deb"].(*api.Image)
	if got.Spec.OS != "debian" || got.Spec.Version != string(got.Spec.Files["rootfs"].SHA256[:12]) || got.Spec.Files["kernel"].Source != filepath.Join(dir, "vmlinuz") {
		t.Errorf("%+v", got.Spec)
	}
	b.run(t, "", "image", "import", "deb", ".", "--os", "debian", "--ignition-version", "3.6.0").want(t, 0, "image/deb unchanged\n")

	// An interrupted import continues with the file at which it stopped.
	write(t, dir, "initrd", "i2")
	write(t, dir, "vmlinuz", "k2")
	before := len(b.blobs)
	broken := fmt.Sprintf("PUT /v1/blobs/sha256:%x", sha256.Sum256([]byte("k2")))
	b.refuse[broken] = &api.Problem{Status: 507, Title: "Insufficient Storage", Detail: "no room for 2 bytes"}
	b.run(t, "", "image", "import", "deb", ".").want(t, 1, "", "import image deb: upload kernel ("+filepath.Join(dir, "vmlinuz")+"): Insufficient Storage: no room for 2 bytes")
	if len(b.blobs) != before+1 {
		t.Errorf("%d blobs more", len(b.blobs)-before)
	}
	delete(b.refuse, broken)
	b.requests = nil
	b.run(t, "", "image", "import", "deb", ".").want(t, 0, "image/deb configured\n", "upload kernel")
	if puts := b.sent("PUT"); len(puts) != 2 {
		t.Errorf("sent %v", puts)
	}

	write(t, dir, "vmlinuz-old", "k0")
	b.run(t, "", "image", "import", "deb", ".").want(t, 2, "", "vmlinuz and vmlinuz-old look like the kernel: say which with kernel=PATH")
	b.run(t, "", "image", "import", "deb2", "kernel=vmlinuz-old", "initrd", "--version", "1").want(t, 0, "image/deb2 created\n")
	b.run(t, "", "image", "import", "deb3", "SHA256SUMS").want(t, 2, "", "does not show its role")
	b.run(t, "", "image", "import", "deb3", "nope").want(t, 2, "", "nope: no such file")
	b.run(t, "", "image", "import", "deb3", t.TempDir()).want(t, 2, "", "no kernel, initrd, rootfs or disk among")
	b.run(t, "", "image", "import", "deb3", "initrd").want(t, 2, "", "an Image has a kernel or a disk")
	b.run(t, "", "image", "import", "deb3", "vmlinuz", "--os", "beos").want(t, 2, "", `"beos" is not one of debian`)
	b.run(t, "", "image", "import", "deb4", "vmlinuz", "--dry-run").want(t, 0, "image/deb4 created (dry run)\n")
}

func TestRackOf(t *testing.T) {
	if got := rackOf(1); len(got) != 1 || got[0].Firmware != lab.BIOS {
		t.Errorf("%+v", got)
	}
	machines := rackOf(7)
	names := map[string]bool{}
	bios := 0
	for i, m := range machines {
		names[m.Name] = true
		if m.Unit != i+1 {
			t.Errorf("%s has unit %d", m.Name, m.Unit)
		}
		if m.Firmware == lab.BIOS {
			bios++
		}
	}
	if len(names) != 7 || bios != 3 {
		t.Errorf("%d names, %d with BIOS", len(names), bios)
	}
}

func TestLabOptionsAreHandedOn(t *testing.T) {
	given := labOptions{dir: "/d", name: "n", image: "/i", bin: "/b", machines: 5, keepState: true}
	var got labOptions
	a := labCommands{&manifests{&app{Process: Process{Env: func(string) string { return "" }}}}}
	c := a.labRunCommand()
	c.ResetFlags()
	rackFlags(c, &got)
	if err := c.ParseFlags(given.arguments()[2:]); err != nil {
		t.Fatal(err)
	}
	if got != given {
		t.Errorf("%+v, want %+v", got, given)
	}
}

// TestNextSteps: the commands are short, and reach the rack as they stand.
func TestNextSteps(t *testing.T) {
	report := lab.Report{Machines: []lab.MachineReport{{Name: "r1u01"}, {Name: "r1u03"}}, BootdSocket: "/d/bootd/run/bootd.sock"}
	steps := func(env map[string]string) string {
		t.Helper()
		var out bytes.Buffer
		p := Process{Env: func(k string) string { return env[k] }, Out: &out}
		a := labCommands{&manifests{&app{Process: p, out: terminal.New(&out, p.Env)}}}
		if err := a.nextSteps(report, "/d"); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	const export = "\n  export RACKWEFT_SERVER=unix:///d/bootd/run/bootd.sock\n"
	got := steps(nil)
	if !strings.Contains(got, export) || !strings.Contains(got, " explain machine r1u01\n") || !strings.Contains(got, " lab down --dir /d\n") || strings.Contains(got, "--server") {
		t.Errorf("another directory:\n%s", got)
	}
	if got := steps(map[string]string{"RACKWEFT_SERVER": "unix:///d/bootd/run/bootd.sock"}); strings.Contains(got, "export") {
		t.Errorf("where weftctl asks the rack already:\n%s", got)
	}
}

func TestOwnName(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", t.TempDir())
	for dir, want := range map[string]string{
		filepath.Dir(self):               "./" + filepath.Base(self),
		filepath.Dir(filepath.Dir(self)): filepath.Join(filepath.Base(filepath.Dir(self)), filepath.Base(self)),
		t.TempDir():                      self,
	} {
		t.Chdir(dir)
		if got := ownName(); got != want {
			t.Errorf("in %s: %s, want %s", dir, got, want)
		}
	}
	t.Setenv("PATH", filepath.Dir(self))
	if got := ownName(); got != filepath.Base(self) {
		t.Errorf("on the path: %s", got)
	}
}

func TestLabFaults(t *testing.T) {
	dir := t.TempDir()
	run := func(args ...string) result {
		t.Helper()
		return runWith(t, t.Context(), map[string]string{}, "", append([]string{"lab"}, args...)...)
	}
	run("status", "--dir", dir).want(t, 1, "", "no rack is up in "+dir+": `weftctl lab up` brings one up")
	run("down", "--dir", dir).want(t, 0, "no rack is up in "+dir+"\n")
	run("up", "--dir", dir, "--machines", "0").want(t, 2, "", "invalid --machines 0: want 1 to 40")
	if os.Geteuid() != 0 {
		run("up", "--dir", dir).want(t, 1, "", "as root")
		t.Skip("the rest needs root, as lab up does")
	}
	run("up", "--dir", dir, "--bin", dir).want(t, 2, "", "--bin "+dir+" has no bootd: `make build` makes it")
	write(t, dir, "bootd", "")
	write(t, dir, "nodeagent", "")
	run("up", "--dir", dir, "--bin", dir).want(t, 2, "", "--image DIRECTORY")
	run("up", "--dir", dir, "--bin", dir, "--image", dir).want(t, 2, "", "--image "+dir+" has no vmlinuz")
}

// TestView: the lines that stand for the live view where nothing can be redrawn, and how it ends.
func TestView(t *testing.T) {
	b := newBootd(t)
	out := newLines()
	a := labCommands{&manifests{&app{out: terminal.New(out, os.Getenv), err: terminal.New(out, os.Getenv)}}}
	client, err := api.NewClient(api.ClientConfig{Server: "unix://" + b.socket})
	if err != nil {
		t.Fatal(err)
	}
	follow := func(names ...string) chan error {
		done := make(chan error, 1)
		go func() { done <- a.follow(t.Context(), client, names, time.Now()) }()
		return done
	}
	at := func(stage api.Stage, phase api.Phase, retry int) func(*api.Machine) {
		return func(m *api.Machine) {
			m.Status.Phase = phase
			m.Status.Attempt = &api.BootAttempt{Number: retry + 1, Stage: stage, Retry: retry}
			switch phase {
			case api.PhaseActive:
				m.Status.Attempt.Result = api.ResultActive
			case api.PhaseFailed:
				m.Status.Attempt.Result, m.Status.Attempt.Message = api.ResultFailed, "no kernel"
			}
		}
	}
	b.machine("r1u01", at(api.StageDHCP, api.PhaseProvisioning, 0))
	b.machine("other", at(api.StageDHCP, api.PhaseFailed, api.MaxRetries))
	done := follow("r1u01", "r1u02")
	stage := func(s api.Stage) string { return fmt.Sprintf("%s %d/%d", s, s.Index()+1, len(api.Stages())) }
	out.next(t, "0:00  r1u01  Provisioning  "+stage(api.StageDHCP))
	b.machine("r1u01", at(api.StageKernel, api.PhaseFailed, 0)) // bootd tries again by itself
	out.next(t, "0:00  r1u01  Failed  "+stage(api.StageKernel))
	b.machine("r1u01", at(api.StageApplied, api.PhaseActive, 1))
	out.next(t, "0:00  r1u01  Active")
	b.machine("r1u02", at(api.StageApplied, api.PhaseActive, 0))
	out.next(t, "0:00  r1u02  Active")
	if err := <-done; err != nil {
		t.Errorf("all are Active: %v", err)
	}
	b.machine("r1u02", at(api.StageKernel, api.PhaseFailed, api.MaxRetries))
	if err := <-follow("r1u01", "r1u02"); err == nil || !strings.Contains(err.Error(), "machine r1u02 is Failed: BootAttempt 3 failed at Kernel: no kernel") {
		t.Errorf("%v", err)
	}
}

func TestLiveLine(t *testing.T) {
	a := &app{out: terminal.New(new(strings.Builder), os.Getenv)}
	v := newView(a, []string{"r1u01", "r1u02"}, time.Now().Add(-67*time.Second))
	m := new(api.Machine)
	m.Metadata.Name = "r1u01"
	m.Status = api.MachineStatus{Phase: api.PhaseProvisioning, Attempt: &api.BootAttempt{Stage: api.StageKernel}}
	v.machine(api.WatchEvent{Type: api.Added, Object: m})
	v.event(api.Event{Name: "r1u01", Message: "kernel\x1b[2J served"})
	n, all := api.StageKernel.Index()+1, len(api.Stages())
	want := fmt.Sprintf("r1u01  Provisioning   %s%s  %2d/%d Kernel     1:07  kernel�[2J served", strings.Repeat("█", n), strings.Repeat("░", all-n), n, all)
	if got := v.line("r1u01", 5); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := v.line("r1u02", 5); !strings.Contains(got, "not created yet") {
		t.Errorf("%q", got)
	}
}

func TestOrderIsThatOfTheKinds(t *testing.T) {
	inputs := []input{}
	for _, k := range slices.Backward(api.Kinds()) {
		inputs = append(inputs, input{kind: k})
	}
	slices.SortStableFunc(inputs, func(x, y input) int { return order(x.kind) - order(y.kind) })
	for i, k := range api.Kinds() {
		if inputs[i].kind.Name != k.Name {
			t.Errorf("%d is %s, want %s", i, inputs[i].kind.Name, k.Name)
		}
	}
}
