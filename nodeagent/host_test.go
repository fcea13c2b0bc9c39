package nodeagent

import (
	"crypto/x509"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// The host's clock is not asked: what counts is that the chain leads to the
// site's CA and was valid at some instant, past or to come.
func TestVerifyServer(t *testing.T) {
	forever := newSite(t, year(1970), year(9999))
	past, future := newSite(t, year(1980), year(1990)), newSite(t, year(2080), year(2090))
	leaf := func(s *site, from, to int) *x509.Certificate { return s.server(year(from), year(to)).Leaf }
	tests := []struct {
		name string
		leaf *x509.Certificate
		root *site
		host string
		want string
	}{
		{"valid at all times", leaf(forever, 1970, 9999), forever, "127.0.0.1", ""},
		{"by name", leaf(forever, 1970, 9999), forever, "bootd.example", ""},
		{"long past", leaf(past, 1985, 1986), past, "127.0.0.1", ""},
		{"far ahead", leaf(future, 2081, 2082), future, "127.0.0.1", ""},
		{"leaf older than its CA", leaf(past, 1970, 1981), past, "127.0.0.1", ""},
		{"never valid together", leaf(past, 1991, 1999), past, "127.0.0.1", "expired"},
		{"another CA", leaf(forever, 1970, 9999), past, "127.0.0.1", "not the bootd of this site"},
		{"another address", leaf(forever, 1970, 9999), forever, "198.18.0.1", "198.18.0.1"},
		{"another name", leaf(forever, 1970, 9999), forever, "bootd.elsewhere", "bootd.elsewhere"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := verifyServer([]*x509.Certificate{tt.leaf}, []*x509.Certificate{tt.root.cert}, tt.host)
			if tt.want == "" && err != nil {
				t.Error(err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("the error is %v, want one with %q", err, tt.want)
			}
		})
	}
	if verifyServer(nil, nil, "127.0.0.1") == nil {
		t.Error("no certificate is good enough")
	}
	client := forever.sign(&x509.Certificate{NotBefore: year(1970), NotAfter: year(9999), DNSNames: []string{"bootd.example"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, &forever.key.PublicKey)
	if verifyServer([]*x509.Certificate{client}, []*x509.Certificate{forever.cert}, "bootd.example") == nil {
		t.Error("a host's own certificate passes for bootd's")
	}
}

func TestLoadConfig(t *testing.T) {
	ca := newSite(t, year(1970), year(9999)).pem
	good := "machine: r1u07\nuid: u1\nattemptID: a1\napi: [\"https://198.18.0.1:8443\"]\njoinTokenFile: /etc/rackweft/join-token\nca: |\n  " +
		strings.ReplaceAll(strings.TrimSpace(ca), "\n", "\n  ") + "\n"
	tests := []struct{ name, text, want string }{
		{"good", good, ""},
		{"unknown field", good + "tokn: x\n", `unknown field "tokn"`},
		{"twice", good + "machine: r1u08\n", "machine"},
		{"no YAML", "machine: [", "nodeagent.yaml"},
		{"empty", "", "/machine"},
		{"bad name", strings.Replace(good, "r1u07", "R1_U7", 1), "/machine: invalid name \"R1_U7\""},
		{"plain http", strings.Replace(good, "https:", "http:", 1), "/api/0: "},
		{"no CA", strings.Split(good, "ca: |")[0], "/ca: "},
		{"no attempt", strings.Replace(good, "attemptID: a1", "attemptID: ''", 1), "/attemptID"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "nodeagent.yaml")
			writeTest(t, path, tt.text)
			c, err := LoadConfig(path)
			if tt.want == "" {
				if err != nil || c.Machine != "r1u07" || c.JoinTokenFile != "/etc/rackweft/join-token" {
					t.Errorf("%+v, %v", c, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("the error is %v, want one with %q and the file's path", err, tt.want)
			}
		})
	}
}

func FuzzLoadConfig(f *testing.F) {
	f.Add("machine: a\nuid: b\napi: [https://x]\n")
	f.Add("ca: |\n  -----BEGIN CERTIFICATE-----\n  AAAA\n  -----END CERTIFICATE-----\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "c")
		writeTest(t, path, text)
		if c, err := LoadConfig(path); err == nil && (c.Machine == "" || len(c.API) == 0) {
			t.Errorf("%q makes %+v", text, c)
		}
	})
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "join-key.json")
	first, err := joinKey(path, "a1")
	if err != nil {
		t.Fatal(err)
	}
	if same, _ := joinKey(path, "a1"); same != first {
		t.Error("the key of one BootAttempt changes")
	}
	other, _ := joinKey(path, "a2")
	if other == first {
		t.Error("two BootAttempts share a key")
	}
	writeTest(t, path, `{"attemptID":"a2","key":"torn`)
	if fresh, err := joinKey(path, "a2"); err != nil || fresh == other {
		t.Errorf("a torn key is used (%v)", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file is %v, %v", info.Mode(), err)
	}
	for _, text := range []string{"", "{", "{}", `{"key":"x","certificate":"y"}`} {
		writeTest(t, filepath.Join(dir, "identity.json"), text)
		if id, err := loadIdentity(filepath.Join(dir, "identity.json")); err == nil {
			t.Errorf("%q passes for an identity: %+v", text, id)
		}
	}
}

func TestRenewAt(t *testing.T) {
	s := newSite(t, year(1970), year(9999))
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := signingRequest(key, testMachine)
	if err != nil {
		t.Fatal(err)
	}
	// The certificate is back-dated; its life counts from when it was given out.
	id := identity{Certificate: s.host(csr, 3*time.Hour), Issued: time.Now()}
	at, err := id.renewAt()
	if d := time.Until(at).Round(time.Minute); err != nil || d != 2*time.Hour {
		t.Errorf("renewed in %s (%v), want 2h", d, err)
	}
}

func TestCheckUnderlay(t *testing.T) {
	nics := []api.HostNIC{
		{Name: "pxe0", Up: true, MTU: 1500},
		{Name: "prod", Up: true, MTU: 1500, Addresses: []netip.Prefix{netip.MustParsePrefix("198.18.8.7/24"), netip.MustParsePrefix("2001:db8::7/64")}},
		{Name: "dark", MTU: 1500},
	}
	addr := func(s ...string) (out []netip.Addr) {
		for _, a := range s {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	tests := []struct {
		name string
		want api.Underlay
		says string
	}{
		{"nothing asked for", api.Underlay{}, ""},
		{"right", api.Underlay{Interface: "prod", Addresses: addr("198.18.8.7", "2001:db8::7"), MTU: 1500}, ""},
		{"missing", api.Underlay{Interface: "bond0"}, "no such interface (present: pxe0, prod, dark)"},
		{"down", api.Underlay{Interface: "dark"}, "down or has no carrier"},
		{"address", api.Underlay{Interface: "prod", Addresses: addr("198.18.8.7", "198.18.8.8")}, "lacks 198.18.8.8"},
		{"mtu", api.Underlay{Interface: "prod", MTU: 9000}, "its MTU is 1500, it needs 9000"},
	}
	for _, tt := range tests {
		got := checkUnderlay(tt.want, nics)
		if (tt.says == "") != (got == "") || !strings.Contains(got, tt.says) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.says)
		}
	}
}

func TestPrettyName(t *testing.T) {
	for text, want := range map[string]string{
		"ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n": "Debian GNU/Linux 12 (bookworm)",
		"PRETTY_NAME=Flatcar": "Flatcar", "": "", "NAME=x\n": "",
	} {
		if got := prettyName([]byte(text)); got != want {
			t.Errorf("%q gives %q", text, got)
		}
	}
}

// A real file system with the label is told from one without.
func TestStateless(t *testing.T) {
	dir := t.TempDir()
	f, err := readFacts(dir)
	if err != nil || !f.Stateless {
		t.Fatalf("%+v, %v", f, err)
	}
	disk, mount := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	writeTest(t, disk, "")
	if err := os.Truncate(disk, 4<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{{"mkfs.ext4", "-q", "-L", dataLabel, disk}, {"mount", "-o", "loop", disk, mount}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Skipf("cannot %s here: %v %s", strings.Join(c, " "), err, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("umount", mount).Run() })
	f, err = readFacts(mount)
	if err != nil || f.Stateless {
		t.Errorf("the file system labelled %s counts as stateless (%v)", dataLabel, err)
	}
}

func TestStatusLine(t *testing.T) {
	s := Status{Link: Link{State: LinkConnected, Server: "https://b:8443"}, Host: api.HostStatus{Epoch: 4, Revision: 118,
		Parts: map[string]api.PartStatus{"base": {State: api.PartApplied}, "bgp": {State: api.PartPending}, "guest/a": {State: api.PartPending}}}}
	if got, want := s.Line(), "Connected to https://b:8443; HostSpec 4/118, 3 parts: 1 Applied, 2 Pending"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	s = Status{Link: Link{State: LinkRefused, Error: "the token is used up"}, Problem: "full disk"}
	if got, want := s.Line(), "Not joined: the token is used up; full disk"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
