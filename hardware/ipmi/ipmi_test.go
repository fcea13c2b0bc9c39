package ipmi

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// A reply of a BMC of IPMI 2.0 to the request for its authentication capabilities.
const capabilities = "\x06\x00\xff\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x81\x1c\x63\x20\x00\x38\x00\x01\x80\x04\x02\x00\x00\x00\x00\x21"

func TestParseCapabilities(t *testing.T) {
	if v2, err := parseCapabilities([]byte(capabilities)); err != nil || !v2 {
		t.Errorf("IPMI 2.0 is not seen: %v", err)
	}
	old := strings.Replace(capabilities, "\x01\x80\x04\x02", "\x01\x15\x04\x00", 1)
	if v2, err := parseCapabilities([]byte(old)); err != nil || v2 {
		t.Errorf("IPMI 1.5 is taken for 2.0: %v", err)
	}
	for n := range len(capabilities) {
		if _, err := parseCapabilities([]byte(capabilities[:n])); err == nil {
			t.Errorf("%d bytes of it are taken", n)
		}
	}
}

// TestFailures: what ipmitool 1.8.19 says, and what that means.
func TestFailures(t *testing.T) {
	const noise = "Loading IANA PEN Registry...\nRunning Get VSO Capabilities my_addr 0x20, transit 0, target 0x20\nInvalid completion code received: Invalid command\nDiscovered IPMB address 0x0\n"
	const none = "Error: Unable to establish IPMI v2 / RMCP+ session\n"
	for _, c := range []struct {
		said, words string
		is          error
	}{
		{"Loading IANA PEN Registry...\n> RAKP 2 HMAC is invalid\n" + none, "RAKP 2 HMAC is invalid", hardware.ErrUnauthorized},
		{"RAKP 2 message indicates an error : unauthorized name\n" + none, `user "admin"`, hardware.ErrUnauthorized},
		{"Error in open session response message : invalid authentication algorithm\n\n" + none, "cipherSuite: 3", nil},
		{"Error in open session response message : insufficient resources for session\n" + none, "sessions", nil},
		{"Set Session Privilege Level to ADMINISTRATOR failed\n" + none, "privilege", hardware.ErrUnauthorized},
		{"Get Auth Capabilities error\nError issuing Get Channel Authentication Capabilities request\n" + none, "does not answer", hardware.ErrUnreachable},
		{noise + "Unable to send RAW command (channel=0x0 netfn=0x0 lun=0x0 cmd=0x8 rsp=0x80): Unknown (0x80)\n", "0x80", hardware.ErrUnsupported},
		{noise + "Unable to send RAW command (channel=0x0 netfn=0x0 lun=0x0 cmd=0x2 rsp=0xd4): Insufficient privilege level\n", "privilege", hardware.ErrForbidden},
		{noise + "Unable to send RAW command (channel=0x0 netfn=0x0 lun=0x0 cmd=0x2 rsp=0xd5): Command not supported in present state\n", "present state", nil},
		{noise + "something new\x1b[31m\n", "something new\ufffd[31m", nil},
		{"", "without a word", nil},
	} {
		err := (&tool{username: "admin", suite: 17, privilege: "administrator"}).failure(c.said)
		if !strings.Contains(err.Error(), c.words) {
			t.Errorf("%q is reported as %v, want …%s…", c.said, err, c.words)
		}
		for _, is := range []error{hardware.ErrUnauthorized, hardware.ErrUnreachable, hardware.ErrUnsupported, hardware.ErrForbidden} {
			if errors.Is(err, is) != (is == c.is) {
				t.Errorf("%v is %v: %t", err, is, errors.Is(err, is))
			}
		}
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		boot hardware.Boot
		want bootFlags
	}{
		{hardware.Boot{Target: hardware.BootPXE}, bootFlags{0xa0, 0x04}},
		{hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeLegacy}, bootFlags{0x80, 0x04}},
		{hardware.Boot{Target: hardware.BootDisk, Mode: hardware.ModeUEFI}, bootFlags{0xa0, 0x08}},
		{hardware.Boot{Target: hardware.BootMedia}, bootFlags{0xa0, 0x14}},
		{hardware.Boot{Target: hardware.BootSetup}, bootFlags{0xa0, 0x18}},
		{hardware.Boot{Target: hardware.BootNone}, bootFlags{}},
	} {
		if got, err := flagsFor(c.boot); err != nil || got != c.want {
			t.Errorf("%v: %#v (%v), want %#v", c.boot, got, err, c.want)
		}
	}
	if _, err := flagsFor(hardware.Boot{Target: hardware.BootHTTP}); !errors.Is(err, hardware.ErrUnsupported) {
		t.Errorf("HTTP boot: %v", err)
	}
}

func TestCredentials(t *testing.T) {
	for _, c := range []struct {
		user, password string
		ok             bool
	}{
		{"admin", strings.Repeat("x", 20), true}, {"admin", strings.Repeat("x", 21), false}, {strings.Repeat("u", 17), "x", false},
		{"", "x", false}, {"admin", "", false}, {"admin", "x\x00y", false},
	} {
		if err := checkCredentials(hardware.Endpoint{Username: c.user, Password: c.password}); (err == nil) != c.ok {
			t.Errorf("%q, %q: %v", c.user, c.password, err)
		}
	}
}

// scripted is a Service whose ipmitool is a shell script; it notes its words in the directory, one run a line.
func scripted(t *testing.T, script string) (*BMC, func() []string) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "ipmitool")
	prefix := "#!/bin/sh\nPATH=/usr/bin:/bin\ncd " + dir + "\nwhile [ \"$1\" != -v ]; do shift; done\nshift\necho \"$*\" >>asked\n"
	if err := os.WriteFile(program, []byte(prefix+script), 0o700); err != nil {
		t.Fatal(err)
	}
	open, end := context.WithCancel(context.Background())
	s := &Service{address: "ipmi://198.18.1.1", log: slog.New(slog.DiscardHandler), turn: make(chan struct{}, 1), open: open, close: end,
		pause: func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
		tool:  tool{program: program, host: "198.18.1.1", port: "623", username: "u", password: "p", suite: 17, privilege: "operator"}}
	t.Cleanup(end)
	return &BMC{s}, func() []string {
		asked, _ := os.ReadFile(filepath.Join(dir, "asked"))
		return strings.Split(strings.TrimSpace(string(asked)), "\n")
	}
}

func count(lines []string, line string) (n int) {
	for _, l := range lines {
		if l == line {
			n++
		}
	}
	return n
}

// TestPowerIsLookedAt: a BMC that accepts an order and does nothing is found out, and not asked twice.
func TestPowerIsLookedAt(t *testing.T) {
	b, asked := scripted(t, "case \"$3\" in 0x01) echo ' 00 00 00' ;; esac\n")
	if err := b.PowerOn(t.Context()); !errors.Is(err, hardware.ErrNotSeen) {
		t.Errorf("got %v, want %v", err, hardware.ErrNotSeen)
	}
	if n := count(asked(), "raw 0x00 0x02 0x01"); n != 1 {
		t.Errorf("power on was sent %d times", n)
	}
	b, asked = scripted(t, "echo ' 01 00 00'\n")
	if err := b.PowerOn(t.Context()); err != nil || len(asked()) != 1 {
		t.Errorf("a server that is on: %v, asked %v", err, asked())
	}
}

// TestRestartWithLostAnswer is not told as done, nor sent again.
func TestRestartWithLostAnswer(t *testing.T) {
	b, asked := scripted(t, "case \"$3\" in 0x01) echo ' 01 00 00' ;; *) echo 'Error: Unable to establish IPMI v2 / RMCP+ session' >&2; exit 1 ;; esac\n")
	if err := b.ForceRestart(t.Context()); !errors.Is(err, hardware.ErrNotSeen) {
		t.Errorf("got %v, want %v", err, hardware.ErrNotSeen)
	}
	if n := count(asked(), "raw 0x00 0x02 0x03"); n != 1 {
		t.Errorf("the restart was sent %d times", n)
	}
}

// TestBusyIsBorne: a busy BMC has done nothing, and is asked again.
func TestBusyIsBorne(t *testing.T) {
	b, asked := scripted(t, "[ -e busy ] && { echo ' 01 00 00'; exit; }\n>busy\necho 'Unable to send RAW command (channel=0x0 netfn=0x0 lun=0x0 cmd=0x1 rsp=0xc0): Node busy' >&2; exit 1\n")
	if state, err := b.PowerState(t.Context()); err != nil || state != hardware.PowerOn || len(asked()) != 2 {
		t.Errorf("%s, %v after %v", state, err, asked())
	}
}

// TestBootIsReadBack: a BMC that accepts the flags and keeps others is found out; one that has no parameter 3 is not a fault.
func TestBootIsReadBack(t *testing.T) {
	const script = "case \"$3 $4\" in '0x08 0x03') echo 'Unable to send RAW command (channel=0x0 netfn=0x0 lun=0x0 cmd=0x8 rsp=0x80): Unknown' >&2; exit 1 ;; '0x09 0x05') echo ' 01 05 a0 DEVICE 00 00 00' ;; esac\n"
	b, asked := scripted(t, strings.Replace(script, "DEVICE", "04", 1))
	if err := b.SetBootOnce(t.Context(), hardware.Boot{Target: hardware.BootPXE}); err != nil {
		t.Error(err)
	}
	if want := []string{"raw 0x00 0x08 0x03 0x08", "raw 0x00 0x08 0x05 0xa0 0x04 0x00 0x00 0x00", "raw 0x00 0x09 0x05 0x00 0x00"}; !slices.Equal(asked(), want) {
		t.Errorf("asked %q, want %q", asked(), want)
	}
	b, _ = scripted(t, strings.Replace(script, "DEVICE", "08", 1))
	if err := b.SetBootOnce(t.Context(), hardware.Boot{Target: hardware.BootPXE}); err == nil || !strings.Contains(err.Error(), "boot would go elsewhere") {
		t.Errorf("the wrong device: %v", err)
	}
}

// TestWithoutPermit: nothing that changes anything is sent.
func TestWithoutPermit(t *testing.T) {
	b, asked := scripted(t, "echo ' 00 00 00'\n")
	ctx := hardware.WithPermit(t.Context(), func() error { return errors.New("another leader") })
	for name, err := range map[string]error{"on": b.PowerOn(ctx), "boot": b.SetBootOnce(ctx, hardware.Boot{Target: hardware.BootPXE}), "light": b.Identify(ctx, true), "free": b.FreeConsole(ctx)} {
		if err == nil || !strings.Contains(err.Error(), "another leader") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := asked(); len(got) != 1 || got[0] != "raw 0x00 0x01" {
		t.Errorf("asked %q", got)
	}
}

// TestContextKills: what ipmitool started ends with it.
func TestContextKills(t *testing.T) {
	b, _ := scripted(t, "sleep 300 & echo $! >child; wait\n")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	start := time.Now()
	if _, err := b.PowerState(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 30*time.Second {
		t.Errorf("got %v after %s", err, time.Since(start))
	}
	dir := filepath.Dir(b.service.tool.program)
	pid, err := os.ReadFile(filepath.Join(dir, "child"))
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(pid)), "stat"))
	if err == nil && !strings.Contains(string(status), ") Z ") {
		t.Errorf("the child still runs: %s", status)
	}
}

func FuzzParseHex(f *testing.F) {
	f.Add(" 01 05 a0 04 00 00 00\n")
	f.Add("")
	f.Add("zz")
	f.Fuzz(func(t *testing.T, out string) {
		data, err := parseHex(out)
		if err == nil && len(data) != len(strings.Fields(out)) {
			t.Errorf("%q is read as % x", out, data)
		}
	})
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte(capabilities))
	f.Add([]byte{1, 5, 0xa0, 4, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = parseCapabilities(data)
		if flags, err := parseBootFlags(data); err == nil && flags.device&^0x3c != 0 {
			t.Errorf("% x has boot device %#x", data, flags.device)
		}
		if id, err := parseDeviceID(data); (err == nil) != (len(data) >= 11) {
			t.Errorf("% x is device %v: %v", data, id, err)
		}
	})
}

func FuzzWords(f *testing.F) {
	f.Add("Unable to send RAW command (channel=0x0 netfn=0x0 lun=0x0 cmd=0x8 rsp=0x80): Unknown (0x80)\n")
	f.Add("RAKP 2 message indicates an error : unauthorized name\n")
	f.Add(" Product Manufacturer  : Example\n Product Serial : 1\n")
	f.Fuzz(func(t *testing.T, said string) {
		if err := (&tool{suite: 17}).failure(said); err == nil || len(err.Error()) > 600 || strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("%q is reported as %v", said, err)
		}
		for name, value := range parseFRU(said) {
			if len(value) > 210 || strings.ContainsAny(value, "\n\x1b") {
				t.Errorf("%q has %q as its %q", said, value, name)
			}
		}
	})
}
