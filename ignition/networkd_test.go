package ignition

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, t := range texts {
		all = append(all, netip.MustParsePrefix(t))
	}
	return all
}

func addrs(texts ...string) []netip.Addr {
	var all []netip.Addr
	for _, t := range texts {
		all = append(all, netip.MustParseAddr(t))
	}
	return all
}

// networkExamples are sets of links as data centres have them.
func networkExamples() map[string][]Link {
	return map[string][]Link{
		// DESIGN.md's machine r1u07.
		"bond-vlan": {
			{Name: "pxe0", MAC: "52:54:00:01:07:00", DHCP: true},
			{Name: "bond0", Bond: &Bond{Mode: "802.3ad", Members: []string{"52:54:00:01:07:01", "52-54-00-01-07-02"}}},
			{Name: "prod", VLAN: &VLAN{Link: "bond0", ID: 208}, Addresses: prefixes("198.18.8.7/24", "2001:db8:8::7/64"),
				Gateways: addrs("198.18.8.1", "fe80::1"), DNS: addrs("198.18.8.1", "2001:db8:8::53"), Domains: []string{"dc1.example"},
				NTP: []string{"198.18.8.1", "ntp.dc1.example"}, MTU: 9000},
			{Name: "storage", VLAN: &VLAN{Link: "bond0", ID: 300}, Addresses: prefixes("198.18.30.7/24"), MTU: 1500},
		},
		"single": {
			{Name: "pxe0", MAC: "52:54:00:01:07:00", DHCP: true},
			{Name: "prod", MAC: "52:54:00:01:07:0A", Addresses: prefixes("198.18.8.7/32"), Gateways: addrs("198.18.8.1"), MTU: 9000},
			{Name: "spare", MAC: "52:54:00:01:07:0b"},
		},
		// PXE on a bond member, as with LACP fallback.
		"named-member": {
			{Name: "pxe0", MAC: "52:54:00:01:07:01"},
			{Name: "bond0", Bond: &Bond{Mode: "active-backup", Members: []string{"52:54:00:01:07:01", "52:54:00:01:07:02"}}, DHCP: true, MTU: 9000},
		},
		"balance-xor": {{Name: "b", Bond: &Bond{Mode: "balance-xor", Members: []string{"52:54:00:01:07:01"}}, DHCP: true}},
	}
}

func TestNetworkFiles(t *testing.T) {
	for name, links := range networkExamples() {
		t.Run(name, func(t *testing.T) {
			files, err := NetworkFiles(links)
			if err != nil {
				t.Fatal(err)
			}
			var all bytes.Buffer
			for _, f := range files {
				fmt.Fprintf(&all, "==> %s %#o\n%s\n", f.Path, f.Mode, f.Contents)
			}
			golden(t, "networkd/"+name+".txt", all.Bytes())
		})
	}
}

func TestNetworkFilesErrors(t *testing.T) {
	nic := func(name, mac string) Link { return Link{Name: name, MAC: mac} }
	const a, b = "52:54:00:00:00:01", "52:54:00:00:00:02"
	bond := func(name string, members ...string) Link {
		return Link{Name: name, Bond: &Bond{Mode: "802.3ad", Members: members}}
	}
	vlan := func(name, on string, id int) Link { return Link{Name: name, VLAN: &VLAN{Link: on, ID: id}} }
	with := func(l Link, change func(*Link)) Link { change(&l); return l }
	tests := []struct {
		name  string
		links []Link
		want  string
	}{
		{"empty name", []Link{nic("", a)}, `link "": invalid interface name`},
		{"long name", []Link{nic("a234567890123456", a)}, "invalid interface name"},
		{"path", []Link{nic("../x", a)}, "invalid interface name"},
		{"loopback", []Link{nic("lo", a)}, "invalid interface name"},
		{"nothing", []Link{{Name: "x"}}, "give exactly one of mac, bond and vlan"},
		{"both", []Link{{Name: "x", MAC: a, VLAN: &VLAN{"y", 1}}}, "give exactly one"},
		{"bad MAC", []Link{nic("x", "52:54:00")}, `invalid MAC "52:54:00"`},
		{"EUI-64", []Link{nic("x", "52:54:00:00:00:00:00:01")}, "invalid MAC"},
		{"group MAC", []Link{nic("x", "01:00:5e:00:00:01")}, "it is a group address"},
		{"zero MAC", []Link{nic("x", "00:00:00:00:00:00")}, "all zeros"},
		{"same name", []Link{nic("x", a), nic("x", b)}, `two links are named "x"`},
		{"same MAC", []Link{nic("x", a), nic("y", strings.ReplaceAll(a, ":", "-"))}, `links "x" and "y" have the same MAC`},
		{"bond mode", []Link{{Name: "x", Bond: &Bond{Mode: "lacp", Members: []string{a}}}}, `invalid bond mode "lacp": want one of 802.3ad, active-backup`},
		{"no members", []Link{bond("x")}, "the bond has no members"},
		{"bad member", []Link{bond("x", "eth0")}, `bond member: invalid MAC "eth0"`},
		{"member twice", []Link{bond("x", a, a)}, "is listed twice"},
		{"member of two", []Link{bond("x", a), bond("y", a)}, `is already in bond "x"`},
		{"member with DHCP", []Link{bond("x", a), with(nic("y", a), func(l *Link) { l.DHCP = true })}, `link "y" is a member of bond "x": move its addresses`},
		{"VLAN 0", []Link{nic("x", a), vlan("y", "x", 0)}, "invalid VLAN id 0: want 1 to 4094"},
		{"VLAN 4095", []Link{nic("x", a), vlan("y", "x", 4095)}, "VLAN id 4095"},
		{"VLAN on nothing", []Link{vlan("y", "x", 1)}, `on link "x", which the machine does not have`},
		{"VLAN on itself", []Link{vlan("y", "y", 1)}, "which is a VLAN itself"},
		{"VLAN on member", []Link{bond("x", a), nic("m", a), vlan("y", "m", 1)}, `which is a member of bond "x": put it on the bond`},
		{"VLAN twice", []Link{nic("x", a), vlan("y", "x", 1), vlan("z", "x", 1)}, `VLAN 1 on link "x" is already link "y"`},
		{"MTU", []Link{with(nic("x", a), func(l *Link) { l.MTU = 70000 })}, "MTU 70000"},
		{"VLAN MTU", []Link{with(nic("x", a), func(l *Link) { l.MTU = 1500 }), with(vlan("y", "x", 1), func(l *Link) { l.MTU = 9000 })},
			`its MTU 9000 does not fit through link "x" with MTU 1500`},
		{"IPv6 MTU", []Link{with(nic("x", a), func(l *Link) { l.MTU = 1000; l.Addresses = prefixes("2001:db8::1/64") })}, "IPv6 needs at least 1280 bytes"},
		{"address twice", []Link{with(nic("x", a), func(l *Link) { l.Addresses = prefixes("198.18.0.1/24") }),
			with(nic("y", b), func(l *Link) { l.Addresses = prefixes("198.18.0.1/16") })}, `links "x" and "y" have the same address 198.18.0.1`},
		{"no address", []Link{with(nic("x", a), func(l *Link) { l.Addresses = []netip.Prefix{{}} })}, "want a unicast address"},
		{"mapped address", []Link{with(nic("x", a), func(l *Link) { l.Addresses = prefixes("::ffff:198.18.0.1/120") })}, "want a unicast address"},
		{"lone gateway", []Link{with(nic("x", a), func(l *Link) { l.Gateways = addrs("198.18.0.1") })}, "needs an address of its family on the link"},
		{"two gateways", []Link{with(nic("x", a), func(l *Link) {
			l.Addresses, l.Gateways = prefixes("198.18.0.5/24"), addrs("198.18.0.1", "198.18.0.2")
		})}, "is the second of its family"},
		{"zone", []Link{with(nic("x", a), func(l *Link) { l.DNS = addrs("fe80::1%eth0") })}, "invalid DNS server fe80::1%eth0"},
		{"injection", []Link{with(nic("x", a), func(l *Link) { l.NTP = []string{"a\n[Match]"} })}, "want a host name or an address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NetworkFiles(tt.links)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %s", err, tt.want)
			}
		})
	}
}

// systemd-networkd and udev read every file without a complaint. networkd runs
// in namespaces of its own and is stopped after it has read its configuration.
func TestNetworkFilesAreUnderstood(t *testing.T) {
	const networkd = "/lib/systemd/systemd-networkd"
	for _, tool := range []string{networkd, "unshare", "mount", "udevadm"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	if os.Geteuid() != 0 || exec.Command("unshare", "-n", "-m", "true").Run() != nil {
		t.Skip("cannot make namespaces: root is needed")
	}
	// A line about one of our files, such as
	// /etc/systemd/network/10-x.network:3: Unknown key 'Bogus' in section [Match], ignoring.
	complaint := regexp.MustCompile(`(?m)^.*/etc/systemd/network/\S+:.*$|^.*(?:Failed to (?:load|parse)|[Ii]gnoring file).*$`)
	run := func(t *testing.T, files []File) []string {
		dir := t.TempDir()
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(f.Path)), f.Contents, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "unshare", "-n", "-m", "--propagation", "private", "sh", "-c", `set -e
			mount -t tmpfs none /run
			mount -t tmpfs none /etc/systemd
			mkdir /etc/systemd/network
			mount --bind "$1" /etc/systemd/network
			udevadm test-builtin net_setup_link /sys/class/net/lo 2>&1 || true
			SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console "$2" 2>&1 &
			pid=$!
			trap 'kill $pid; wait $pid || true' EXIT
			sleep 600`, "sh", dir, networkd)
		// The pipe's reader ends the shell as soon as networkd has read all.
		output, err := readUntil(cmd, "Enumeration completed")
		if err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		return complaint.FindAllString(output, -1)
	}

	for name, links := range networkExamples() {
		t.Run(name, func(t *testing.T) {
			files, err := NetworkFiles(links)
			if err != nil {
				t.Fatal(err)
			}
			if complaints := run(t, files); len(complaints) > 0 {
				t.Errorf("systemd complains:\n%s", strings.Join(complaints, "\n"))
			}
		})
	}
	t.Run("a fault is seen", func(t *testing.T) {
		bogus := File{Path: networkDir + "10-x.network", Contents: []byte("[Match]\nName=x\nBogus=1\n")}
		if complaints := run(t, []File{bogus}); len(complaints) == 0 {
			t.Error("systemd does not complain about an unknown key: this test sees nothing")
		}
	})
}

func FuzzNetworkFiles(f *testing.F) {
	for _, links := range networkExamples() {
		text, err := json.Marshal(links)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	line := regexp.MustCompile(`^(\[[A-Za-z0-9]+\]|[A-Za-z0-9]+=[A-Za-z0-9_.:/+ -]+|)$`)
	path := regexp.MustCompile(`^/etc/systemd/network/1[01]-[A-Za-z0-9_.-]+\.(link|netdev|network)$`)
	f.Fuzz(func(t *testing.T, text []byte) {
		var links []Link
		if json.Unmarshal(text, &links) != nil {
			return
		}
		files, err := NetworkFiles(links)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, file := range files {
			if !path.MatchString(file.Path) || seen[file.Path] {
				t.Errorf("bad or repeated path %q", file.Path)
			}
			seen[file.Path] = true
			for text := range strings.SplitSeq(string(file.Contents), "\n") {
				if !line.MatchString(text) {
					t.Errorf("%s: bad line %q", file.Path, text)
				}
			}
		}
		again, err := NetworkFiles(links)
		if diff := cmp.Diff(files, again); diff != "" || err != nil {
			t.Errorf("not deterministic: %v\n%s", err, diff)
		}
	})
}

// readUntil runs cmd, which would run on, until its output has mark, and ends
// the whole process group.
func readUntil(cmd *exec.Cmd, mark string) (string, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return "", err
	}
	var output strings.Builder
	found := false
	for scanner := bufio.NewScanner(stdout); !found && scanner.Scan(); {
		fmt.Fprintln(&output, scanner.Text())
		found = strings.Contains(scanner.Text(), mark)
	}
	stop := cmd.Cancel()
	_ = cmd.Wait() // it was killed
	if !found {
		return output.String(), fmt.Errorf("no %q in the output", mark)
	}
	return output.String(), stop
}
