package bootd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vincent-petithory/dataurl"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/internal/wait/waittest"
	"github.com/rackweft/rackweft/lab/bmc/bmctest"
)

// bootdAddress is bootd's on br0.
const bootdAddress = "198.18.0.1"

const vault = "correct-horse-battery-staple"

// site is a bootd that serves the segment br0 with Machines that boot there.
type site struct {
	*rig
	c     *api.Client
	roots *x509.CertPool
	ports atomic.Int32
}

func newSite(t *testing.T) *site {
	s := &site{rig: newRig(t)}
	p := s.start("r")
	p.says("msg=ready")
	s.c = s.client("r")
	ca, err := os.ReadFile(filepath.Join(s.dir, "s", "ca", "ca.crt"))
	if err != nil {
		ca, err = os.ReadFile(filepath.Join(s.dir, "s", "admin", "ca.crt"))
	}
	if err != nil {
		t.Fatal(err)
	}
	s.roots = x509.NewCertPool()
	s.roots.AppendCertsFromPEM(ca)
	image := &api.Image{Spec: api.ImageSpec{Version: "1", OS: "debian", IgnitionVersion: "3.5.0", Files: map[string]api.ImageFile{}}}
	for _, name := range []string{"kernel", "initrd", "rootfs"} {
		sum := sha256.Sum256([]byte(name))
		digest := api.SHA256(hex.EncodeToString(sum[:]))
		if err := s.c.PutBlob(t.Context(), digest, strings.NewReader(name)); err != nil {
			t.Fatal(err)
		}
		image.Spec.Files[name] = api.ImageFile{SHA256: digest}
	}
	subnet := &api.Subnet{Spec: api.SubnetSpec{Purpose: api.Provisioning, Interface: "br0", Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")}}}
	if err := subnet.Spec.Range.UnmarshalText([]byte("198.18.0.100-198.18.0.199")); err != nil {
		t.Fatal(err)
	}
	s.put("site", new(api.Site))
	s.put("pxe", subnet)
	s.put("bmc", &api.Secret{Spec: api.SecretSpec{Data: map[string]string{"username": bmctest.Username, "password": bmctest.Password}}})
	s.put("vault", &api.Secret{Spec: api.SecretSpec{Data: map[string]string{"password": vault}, Uses: &api.SecretUses{Layers: []string{"base"}}}})
	s.put("base", &api.Layer{Spec: api.LayerSpec{Butane: "storage:\n  files:\n    - path: /etc/vault\n      mode: 0600\n      contents:\n        inline: {{ secret \"vault\" \"password\" | quote }}\n"}})
	s.put("img", image)
	s.put("worker", &api.Profile{Spec: api.ProfileSpec{Image: "img", Layers: []string{"base"}}})
	s.condition(s.c, "True", "Serving")
	return s
}

func (s *site) put(name string, o api.Object) {
	s.t.Helper()
	o.Meta().Name = name
	o.SetDefaults()
	if _, err := s.c.Put(s.t.Context(), o, false); err != nil {
		s.t.Fatal(err)
	}
}

// victim is a Machine that boots on br0.
type victim struct {
	*site
	t         *testing.T
	name, mac string
	bmc       *bmctest.Server
	parties   []*party
	turn      *party // who is on the segment
}

// victim registers a Machine, and returns before it is powered on.
func (s *site) victim(t *testing.T, n int, trust api.TrustLevel) *victim {
	t.Helper()
	v := &victim{site: s, t: t, name: fmt.Sprintf("r1u%02d", n), mac: fmt.Sprintf("52:54:00:01:%02x:00", n)}
	if err := nstest.Within(s.ns, func() error { v.bmc = bmctest.Start(t); return nil }); err != nil {
		t.Fatal(err)
	}
	m := &api.Machine{Spec: api.MachineSpec{Profile: "worker", Links: []api.Link{{Name: "pxe0", MAC: api.MAC(v.mac), Subnet: "pxe"}},
		BMC: &api.BMC{Address: v.bmc.URL, Credentials: "bmc"}, Trust: api.Trust{Minimum: trust}}}
	m.Metadata.Name = v.name
	m.SetDefaults()
	if _, err := s.c.Put(t.Context(), m, false); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *victim) machine() *api.Machine {
	v.t.Helper()
	m, err := api.Get[api.Machine](v.t.Context(), v.c, v.name)
	if err != nil {
		v.t.Fatal(err)
	}
	return m
}

// wait waits until the Machine is so.
func (v *victim) wait(what string, is func(*api.Machine) bool) *api.Machine {
	v.t.Helper()
	var m *api.Machine
	ok := waittest.Soon(2*time.Minute, func() bool {
		m = v.machine()
		return is(m)
	})
	if !ok {
		v.t.Fatalf("%s: never; attempt %+v, history %+v, conditions %+v", what, m.Status.Attempt, m.Status.History, m.Status.Conditions)
	}
	return m
}

// poweredOn waits until the BootAttempt of that number has had its power
// command, and then as long as firmware takes at the least: BMCs tell resets in
// whole seconds.
func (v *victim) poweredOn(number int) {
	v.t.Helper()
	v.wait(fmt.Sprintf("BootAttempt %d powered on", number), func(m *api.Machine) bool {
		a := m.Status.Attempt
		return a != nil && a.Number == number && a.Open() && a.Reached(api.StagePowerOn)
	})
	for _, s := range v.machine().Status.Attempt.Stages {
		if s.Stage == api.StagePowerOn {
			time.Sleep(time.Until(s.Time.Add(5 * time.Second)))
		}
	}
}

func (v *victim) events(reason string) int {
	v.t.Helper()
	n := 0
	if err := v.c.Events(v.t.Context(), "Machine", v.name, false, func(e api.Event) error {
		if e.Reason == reason {
			n++
		}
		return nil
	}); err != nil {
		v.t.Fatal(err)
	}
	return n
}

// party is somebody on the segment: the Machine itself, or who forges its MAC.
type party struct {
	v       *victim
	mac     string
	ns      string
	port    string // of br0
	address netip.Addr
	server  string       // that DHCP told it to boot from
	secrets atomic.Int32 // that it got
	alone   bool         // no other shares its MAC, so it stays on the segment
}

// party puts a MAC on the segment.
func (v *victim) party(mac string) *party {
	v.t.Helper()
	p := v.attach(mac)
	v.parties = append(v.parties, p)
	return p
}

// attach puts a MAC at a port of the segment, which is down.
func (v *victim) attach(mac string) *party {
	v.t.Helper()
	n := v.ports.Add(1)
	p := &party{v: v, mac: mac, ns: fmt.Sprintf("%s-p%d", v.ns, n), port: fmt.Sprintf("port%d", n), server: bootdAddress}
	nstest.Add(v.t, p.ns)
	v.run("ip", "-n", v.ns, "link", "add", p.port, "type", "veth", "peer", "name", "eth0", "netns", p.ns)
	v.run("ip", "-n", v.ns, "link", "set", p.port, "master", "br0")
	v.run("ip", "-n", p.ns, "link", "set", "eth0", "address", mac, "up")
	return p
}

// mine puts the party on the segment, and the other one off it: the bridge knows
// one port of a MAC, and whatever the other one's kernel says by itself would
// take the traffic away from this one.
func (p *party) mine() {
	p.v.t.Helper()
	if p.alone || p.v.turn == p {
		return
	}
	for _, q := range p.v.parties {
		if q != p {
			p.v.run("ip", "-n", p.v.ns, "link", "set", q.port, "down")
		}
	}
	p.v.run("ip", "-n", p.v.ns, "link", "set", p.port, "up")
	p.v.turn = p
}

// lease does DHCP as iPXE does.
func (p *party) lease() {
	p.v.t.Helper()
	p.leaseBy(func(ctx context.Context, c *nclient4.Client) (*nclient4.Lease, error) {
		return c.Request(ctx, asIPXE()...)
	})
}

// asIPXE is what iPXE's requests say.
func asIPXE() []dhcpv4.Modifier {
	return []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00000:UNDI:002001")),
		dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionUserClassInformation, []byte("iPXE"))), dhcpv4.WithBroadcast(true)}
}

// leaseBy does DHCP in some way, and keeps what it receives.
func (p *party) leaseBy(request func(context.Context, *nclient4.Client) (*nclient4.Lease, error), opts ...nclient4.ClientOpt) {
	p.v.t.Helper()
	p.mine()
	var lease *nclient4.Lease
	err := nstest.Within(p.ns, func() error {
		c, err := nclient4.New("eth0", append(opts, nclient4.WithTimeout(2*time.Second), nclient4.WithRetry(10))...)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		lease, err = request(p.v.t.Context(), c)
		return err
	})
	if err != nil {
		p.v.t.Fatalf("DHCP: %v", err)
	}
	p.address, _ = netip.AddrFromSlice(lease.ACK.YourIPAddr.To4())
	if boot, err := url.Parse(lease.ACK.BootFileNameOption()); err == nil && boot.Host != "" {
		p.server = boot.Hostname()
	}
	p.v.run("ip", "-n", p.ns, "addr", "replace", p.address.String()+"/24", "dev", "eth0")
}

// client makes every request on a connection of its own, and trusts some CAs.
func (p *party) client(roots *x509.CertPool, cert *tls.Certificate) *http.Client {
	conf := &tls.Config{RootCAs: roots}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: conf,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			for range 5 { // of who was put on the segment just now, ARP may not get through yet
				err = nstest.Within(p.ns, func() error { c, err = new(net.Dialer).DialContext(ctx, network, address); return err })
				if !errors.Is(err, syscall.EHOSTUNREACH) {
					break
				}
			}
			return c, err
		}}}
}

// do asks as who trusts the Site's CA.
func (p *party) do(method, at, token, body string) (status int, answer string) {
	p.v.t.Helper()
	status, answer, err := p.try(p.v.roots, method, at, token, body)
	if err != nil {
		p.v.t.Errorf("%s %s: %v", method, at, err)
	}
	return status, answer
}

// try asks, and counts the Secrets in the answer.
func (p *party) try(roots *x509.CertPool, method, at, token, body string) (status int, answer string, err error) {
	p.v.t.Helper()
	p.mine()
	req, err := http.NewRequestWithContext(p.v.t.Context(), method, at, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Accept", "application/vnd.coreos.ignition+json;version=3.5.0, */*;q=0.1")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := p.client(roots, nil).Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if strings.Contains(string(raw), "/etc/vault") { // the config, with what only it holds
		p.secrets.Add(1)
	}
	return resp.StatusCode, string(raw), err
}

// loot is what a boot is given, step by step.
type loot struct {
	pointer, config, token, join string
	roots                        *x509.CertPool // that the pointer names, for the config
}

// script asks for the boot script; pointer is empty when it was held.
func (p *party) script(l *loot, asset string) int {
	p.v.t.Helper()
	status, text := p.do("GET", "http://"+p.server+":8080/ipxe/script?mac="+p.v.mac+"&asset="+url.QueryEscape(asset), "", "")
	if status == http.StatusOK {
		l.pointer = pointerIn(text)
	}
	return status
}

// pointerIn is the URL of the pointer in a boot script; empty when it has none.
func pointerIn(script string) string {
	_, after, ok := strings.Cut(script, "ignition.config.url=")
	if !ok {
		return ""
	}
	return strings.Fields(after)[0]
}

func (p *party) fetchPointer(l *loot) int {
	p.v.t.Helper()
	status, text := p.do("GET", l.pointer, "", "")
	if status == http.StatusOK {
		l.follow(p.v.t, text)
	}
	return status
}

// follow reads a pointer as Ignition does.
func (l *loot) follow(t *testing.T, pointer string) {
	t.Helper()
	var c struct {
		Ignition struct {
			Config struct {
				Replace struct {
					Source      string
					HTTPHeaders []struct{ Name, Value string }
				}
			}
			Security struct {
				TLS struct{ CertificateAuthorities []struct{ Source string } }
			}
		}
	}
	if err := json.Unmarshal([]byte(pointer), &c); err != nil || len(c.Ignition.Config.Replace.HTTPHeaders) == 0 {
		t.Fatalf("the pointer is %s", pointer)
	}
	l.config = c.Ignition.Config.Replace.Source
	_, l.token, _ = strings.Cut(c.Ignition.Config.Replace.HTTPHeaders[0].Value, " ")
	l.roots = x509.NewCertPool()
	for _, ca := range c.Ignition.Security.TLS.CertificateAuthorities {
		pem, err := dataurl.DecodeString(ca.Source)
		if err != nil {
			t.Fatalf("a CA of the pointer %s: %v", pointer, err)
		}
		l.roots.AppendCertsFromPEM(pem.Data)
	}
}

func (p *party) fetchConfig(l *loot) int {
	p.v.t.Helper()
	status, text, err := p.try(l.roots, "GET", l.config, l.token, "")
	if err != nil {
		p.v.t.Errorf("GET %s: %v", l.config, err)
	}
	if status == http.StatusOK {
		l.join = joinTokenIn(p.v.t, text)
	}
	return status
}

// joinTokenIn is the join token in a config.
func joinTokenIn(t *testing.T, config string) string {
	t.Helper()
	var c struct {
		Storage struct {
			Files []struct {
				Path     string
				Contents struct{ Source string }
			}
		}
	}
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		t.Fatal(err)
	}
	for _, f := range c.Storage.Files {
		if f.Path == "/etc/rackweft/join-token" {
			content, err := dataurl.DecodeString(f.Contents.Source)
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(string(content.Data))
		}
	}
	return ""
}

// join joins with a key of its own; cert is nil when it was refused.
func (p *party) join(l *loot) (cert *tls.Certificate, status int) {
	p.v.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.v.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		p.v.t.Fatal(err)
	}
	body, err := json.Marshal(api.JoinRequest{Machine: p.v.name, CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), Time: time.Now()})
	if err != nil {
		p.v.t.Fatal(err)
	}
	status, text := p.do("POST", "https://198.18.0.1:8443/v1/join", l.join, string(body))
	if status != http.StatusOK {
		return nil, status
	}
	var answer api.JoinResponse
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		p.v.t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(answer.Certificate))
	return &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}, status
}

// serve is the host at work: it holds its stream and applies whatever it is
// sent, until the test ends or bootd refuses it.
func (p *party) serve(cert *tls.Certificate, m *api.Machine) <-chan string {
	p.mine()
	out, in := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	refused := make(chan string, 1)
	var done sync.WaitGroup
	p.v.t.Cleanup(func() { cancel(); _ = in.Close(); done.Wait() })
	send := json.NewEncoder(in)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://198.18.0.1:8443/v1/hosts/"+p.v.name+"/stream", out)
	if err != nil {
		p.v.t.Fatal(err)
	}
	client := p.client(p.v.roots, cert)
	client.Timeout = 0
	done.Go(func() {
		_ = send.Encode(api.HostFrame{Hello: &api.Hello{UID: m.Metadata.UID, AgentVersion: "test", Time: time.Now()}})
	})
	done.Go(func() {
		defer func() { _ = in.Close() }()
		resp, err := client.Do(req)
		if err != nil {
			refused <- err.Error()
			return
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != http.StatusOK {
			refused <- resp.Status
			return
		}
		refused <- apply(json.NewDecoder(resp.Body), send, m)
	})
	return refused
}

// apply reports every part as applied, and returns why the stream ended.
func apply(from *json.Decoder, to *json.Encoder, m *api.Machine) string {
	parts := map[string]api.PartStatus{}
	for {
		var f api.ServerFrame
		if err := from.Decode(&f); err != nil {
			return err.Error()
		}
		switch {
		case f.Refused != "":
			return f.Refused
		case f.Part != nil:
			parts[f.Part.Name] = api.PartStatus{Digest: f.Part.Digest, State: api.PartApplied}
		case f.Bookmark != nil:
			status := &api.HostStatus{UID: m.Metadata.UID, AttemptID: m.Status.Attempt.ID, Epoch: f.Bookmark.Epoch, Revision: f.Bookmark.Revision, Parts: parts}
			if err := to.Encode(api.HostFrame{Status: status}); err != nil {
				return err.Error()
			}
		}
	}
}

// boot goes all the way from DHCP to Active in the attempt that is open.
func (p *party) boot() {
	p.v.t.Helper()
	var l loot
	p.lease()
	for range 200 {
		if p.script(&l, p.v.bmc.AssetTag()) == http.StatusOK && l.pointer != "" {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	p.goOn(&l)
}

// goOn goes on from the script to Active.
func (p *party) goOn(l *loot) {
	p.v.t.Helper()
	if status := p.fetchPointer(l); status != http.StatusOK {
		p.v.t.Fatalf("the pointer: %d", status)
	}
	if status := p.fetchConfig(l); status != http.StatusOK {
		p.v.t.Fatalf("the config: %d", status)
	}
	p.active(l)
}

func (p *party) active(l *loot) {
	p.v.t.Helper()
	cert, status := p.join(l)
	if cert == nil {
		p.v.t.Fatalf("the join: %d", status)
	}
	refused := p.serve(cert, p.v.machine())
	p.v.wait("Active", func(m *api.Machine) bool {
		select {
		case why := <-refused:
			p.v.t.Fatalf("the stream ended: %s", why)
		default:
		}
		return m.Status.Phase == api.PhaseActive
	})
}
