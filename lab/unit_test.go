package lab

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/lab/bmc"
)

func TestConfigMistakes(t *testing.T) {
	good := func() Config {
		return Config{Name: "lab", Dir: "/run/lab", Machines: []MachineConfig{{Name: "m1", Unit: 1, Firmware: BIOS}}}
	}
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"rack name", func(c *Config) { c.Name = "My Lab" }, `rack name "My Lab"`},
		{"no rack name", func(c *Config) { c.Name = "" }, `rack name ""`},
		{"machine name", func(c *Config) { c.Machines[0].Name = "machine-one" }, `machine name "machine-one"`},
		{"unit", func(c *Config) { c.Machines[0].Unit = 100 }, "unit 100"},
		{"unit twice", func(c *Config) { c.Machines = append(c.Machines, MachineConfig{Name: "m2", Unit: 1, Firmware: BIOS}) }, "twice"},
		{"firmware", func(c *Config) { c.Machines[0].Firmware = "coreboot" }, `"coreboot"`},
		{"long directory", func(c *Config) { c.Dir = "/" + strings.Repeat("d", 100) }, "too long"},
	}
	for _, tt := range tests {
		c := good()
		tt.change(&c)
		if err := c.complete(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
	c := good()
	if err := c.complete(); err != nil || c.Machines[0].CPUs != 1 || c.Machines[0].MemoryMiB != 2048 || c.Accelerator != TCG {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestManifestsAreGood: what a user copies decodes strictly and is valid.
func TestManifestsAreGood(t *testing.T) {
	image := t.TempDir()
	digest := strings.Repeat("ab", 32)
	sums := ""
	for _, name := range []string{"vmlinuz", "initrd", "rootfs.squashfs"} {
		sums += digest + "  " + name + "\n"
	}
	if err := os.WriteFile(filepath.Join(image, "SHA256SUMS"), []byte(sums), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRack(t, func(c *Config) { c.ImageDir = image })
	if got, want := len(r.Manifests()), len(manifestOrder()); got != want {
		t.Errorf("%d manifests, want %d", got, want)
	}
	kinds := map[string]int{}
	for _, path := range r.Manifests() {
		body, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for document := range bytes.SplitSeq(body, []byte("\n---\n")) {
			encoded, err := yaml.YAMLToJSON(document)
			if err != nil {
				t.Fatalf("%s: %v\n%s", path, err, document)
			}
			o, err := api.DecodeObject(encoded)
			if err != nil {
				t.Fatalf("%s: %v\n%s", path, err, document)
			}
			for _, fault := range o.Validate() {
				t.Errorf("%s: %v", path, fault)
			}
			switch o := o.(type) {
			case *api.Machine:
				kinds["Machine"]++
				m := r.Machine(o.Metadata.Name)
				if o.Spec.BMC.TLS.Fingerprint != api.Fingerprint(m.BMC().Fingerprint()) || string(o.Spec.Links[0].MAC) != m.Config().MAC(0) {
					t.Errorf("%s: fingerprint %s, MAC %s", o.Metadata.Name, o.Spec.BMC.TLS.Fingerprint, o.Spec.Links[0].MAC)
				}
			case *api.Secret:
				if o.Spec.Data["password"] != r.BMCPassword() {
					t.Error("secret.yaml has another password than the BMCs")
				}
			case *api.Image:
				if f := o.Spec.Files[api.RootfsFile]; f.Source != filepath.Join(image, "rootfs.squashfs") || string(f.SHA256) != digest {
					t.Errorf("image.yaml: %+v", f)
				}
			}
		}
	}
	if kinds["Machine"] != 3 {
		t.Errorf("%d machines", kinds["Machine"])
	}
}

func TestImageWithoutDigest(t *testing.T) {
	dir := t.TempDir()
	if _, err := readImage(dir); err == nil {
		t.Error("a folder without SHA256SUMS is an image")
	}
	if err := os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(strings.Repeat("0", 64)+"  vmlinuz\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readImage(dir); err == nil || !strings.Contains(err.Error(), "initrd") {
		t.Errorf("an image without an initrd: %v", err)
	}
}

func TestParseStartTime(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"
	for _, name := range []string{"qemu", "a b", ") S 1 (", ""} {
		got, err := parseStartTime("77 (" + name + ")" + rest)
		if err != nil || got != 4242 {
			t.Errorf("process %q: %d, %v", name, got, err)
		}
		if ticks, err := parseCPUTicks("77 (" + name + ")" + rest); err != nil || ticks != 11+12 {
			t.Errorf("process %q used %d ticks, %v", name, ticks, err)
		}
	}
	for _, bad := range []string{"", "77 (x", "77 (x) S 1"} {
		if _, err := parseStartTime(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestDirectBootHasNoFirmware(t *testing.T) {
	for _, firmware := range []Firmware{BIOS, UEFI} {
		m := &Machine{rack: &Rack{}, config: MachineConfig{Name: "m1", Unit: 1, Firmware: firmware, CPUs: 2, MemoryMiB: 2048}}
		through := m.qemuArguments(bmc.Pxe, "a,tag")
		m.SetDirect(&DirectBoot{Kernel: "/k", Initrd: "/i", Append: "a b=c"})
		args := m.qemuArguments(bmc.Pxe, "a,tag")
		if got := args[len(args)-6:]; !slices.Equal(got, []string{"-kernel", "/k", "-initrd", "/i", "-append", "a b=c"}) {
			t.Errorf("%s: %q", firmware, got)
		}
		if all := strings.Join(args, " "); strings.Contains(all, "pflash") || strings.Count(all, ",romfile=") != 2 {
			t.Errorf("%s: firmware is in the way: %s", firmware, all)
		}
		m.SetDirect(nil)
		if again := m.qemuArguments(bmc.Pxe, "a,tag"); !slices.Equal(again, through) {
			t.Errorf("%s: not as before: %q", firmware, again)
		}
	}
}

func TestAssetTagReachesSMBIOS(t *testing.T) {
	m := &Machine{rack: &Rack{}, config: MachineConfig{Name: "m1", Unit: 1, Firmware: BIOS, CPUs: 2, MemoryMiB: 2048}, tag: "m1"}
	shown := func() string { return strings.Join(m.qemuArguments(bmc.Pxe, m.shownTag()), " ") }
	m.SetAssetTag("one,two")
	if all := shown(); !strings.Contains(all, ",asset=one,,two ") {
		t.Errorf("QEMU is given %s", all)
	}
	m.SetStaleTag(true)
	if all := shown(); !strings.Contains(all, ",asset=m1 ") {
		t.Errorf("firmware with a tag of its own: QEMU is given %s", all)
	}
}

func FuzzParseStartTime(f *testing.F) {
	f.Add("77 (qemu) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20")
	f.Add(")")
	f.Fuzz(func(_ *testing.T, stat string) { _, _ = parseStartTime(stat) })
}

func FuzzParseSums(f *testing.F) {
	f.Add(strings.Repeat("0", 64) + "  vmlinuz\n")
	f.Add("x *y")
	f.Fuzz(func(t *testing.T, text string) {
		sums, err := parseSums(strings.NewReader(text))
		for name, sum := range sums {
			if err == nil && len(sum) != 64 {
				t.Errorf("%q has digest %q", name, sum)
			}
		}
	})
}

func FuzzRackFile(f *testing.F) {
	f.Add([]byte(`{"name":"lab","owner":{"pid":77,"start":1},"namespaces":[{"name":"lab-net"}],"processes":[{"pid":78}]}`))
	f.Add([]byte(`{"owner":{"pid":1},"namespaces":[{"name":"../x"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		file, err := parseRackFile(body)
		if err != nil {
			return
		}
		for _, n := range file.Namespaces {
			if filepath.Dir(filepath.Join(namespaceDir, n.Name)) != namespaceDir {
				t.Errorf("namespace %q is outside %s", n.Name, namespaceDir)
			}
		}
		for _, p := range file.Processes {
			if p.PID <= 1 {
				t.Errorf("pid %d would be killed", p.PID)
			}
		}
	})
}

// qemuMonitor plays QEMU's side of a monitor.
func qemuMonitor(t *testing.T, answers func(line string) string) (*qmp, *[]string) {
	t.Helper()
	here, there := net.Pipe()
	events := &[]string{}
	go func() { // ends with the pipe
		defer func() { _ = there.Close() }()
		if _, err := io.WriteString(there, `{"QMP":{"version":{},"capabilities":[]}}`+"\n"); err != nil {
			return
		}
		buffer := make([]byte, 4096)
		for {
			n, err := there.Read(buffer)
			if err != nil {
				return
			}
			if _, err := io.WriteString(there, answers(string(buffer[:n]))); err != nil {
				return
			}
		}
	}()
	q, err := newQMP(t.Context(), here, func(name string, _ map[string]any) { *events = append(*events, name) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.close)
	return q, events
}

func TestQMP(t *testing.T) {
	q, events := qemuMonitor(t, func(line string) string {
		switch {
		case strings.Contains(line, "bad"):
			return `{"error":{"class":"GenericError","desc":"no such thing"}}` + "\n"
		case strings.Contains(line, "stop"):
			return `{"event":"STOP"}` + "\n" + `{"return":{}}` + "\n"
		case strings.Contains(line, "hang"):
			return "\n"[:0]
		}
		return `{"return":{}}` + "\n"
	})
	if err := q.run(t.Context(), "stop", nil); err != nil || !slices.Equal(*events, []string{"STOP"}) {
		t.Errorf("%v, events %v", err, *events)
	}
	if err := q.run(t.Context(), "bad", map[string]any{"a": 1}); err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("an error of QEMU's: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := q.run(ctx, "hang", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a monitor that does not answer: %v", err)
	}
	q.close()
	if err := q.run(t.Context(), "stop", nil); err == nil {
		t.Error("a closed monitor answers")
	}
}

func FuzzQMP(f *testing.F) {
	f.Add([]byte(`{"QMP":{}}` + "\n" + `{"event":"RESET","data":{"guest":true}}` + "\n" + `{"return":{}}` + "\n"))
	f.Add([]byte(`{"error":{"class":1}}`))
	f.Fuzz(func(_ *testing.T, stream []byte) { scan(bytes.NewReader(stream), func(qmpMessage) {}) })
}

func TestPickAccelerator(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, want := range []Accelerator{KVM, TCG} {
		t.Setenv(AcceleratorEnv, string(want))
		if got, err := PickAccelerator(t.Context(), "/none", t.TempDir(), log); got != want || err != nil {
			t.Errorf("%s, %v; want %s", got, err, want)
		}
	}
	t.Setenv(AcceleratorEnv, "xen")
	if _, err := PickAccelerator(t.Context(), "/none", t.TempDir(), log); err == nil {
		t.Error("xen was accepted")
	}
}

func TestKVMMissing(t *testing.T) {
	modules, device := t.TempDir(), filepath.Join(t.TempDir(), "kvm")
	if kvmMissing(device, modules) == "" {
		t.Error("KVM without a device")
	}
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if kvmMissing(device, modules) == "" {
		t.Error("KVM without a module")
	}
	if err := os.Mkdir(filepath.Join(modules, "kvm_amd"), 0o700); err != nil {
		t.Fatal(err)
	}
	if reason := kvmMissing(device, modules); reason != "" {
		t.Error(reason)
	}
}

func TestVerdictIsKeptForWhatItHolds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache", "accelerator.json")
	held := verdict{BootID: "b", QEMU: "q", KernelDigest: "k"}
	if _, ok := cached(path, held); ok {
		t.Error("a verdict out of nothing")
	}
	found := held
	found.Accelerator, found.Reason = KVM, "it works"
	if err := writeVerdict(path, found); err != nil {
		t.Fatal(err)
	}
	if got, ok := cached(path, held); !ok || got != found {
		t.Errorf("%+v, %v", got, ok)
	}
	for _, change := range []func(*verdict){func(v *verdict) { v.BootID = "x" }, func(v *verdict) { v.QEMU = "x" }, func(v *verdict) { v.KernelDigest = "x" }} {
		other := held
		change(&other)
		if _, ok := cached(path, other); ok {
			t.Errorf("the verdict was taken for %+v", other)
		}
	}
}

func FuzzBootVariables(f *testing.F) {
	empty := append(make([]byte, 72), efiGUID("aaf32c78-947b-439a-a180-2e144ec37792")...)
	empty = append(empty, 0, 2, 0, 0, 0x5a, 0xfe, 0, 0, 0, 0, 0, 0)
	empty = append(empty, bytes.Repeat([]byte{0xff}, 600)...)
	f.Add(empty, "http://198.18.0.1/")
	f.Add(empty[:100], "")
	f.Fuzz(func(t *testing.T, store []byte, url string) {
		got, err := bootVariables(store, net.HardwareAddr{2, 0, 0, 0, 0, 1}, url)
		if err == nil && len(got) != len(store) {
			t.Errorf("a store of %d bytes became %d", len(store), len(got))
		}
	})
}
