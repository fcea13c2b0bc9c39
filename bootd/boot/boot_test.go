package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/dhcp"
	"github.com/rackweft/rackweft/bootd/httpboot"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
)

const (
	host    = "r1u07"
	hostMAC = "52:54:00:01:07:00"
	accept  = "application/vnd.coreos.ignition+json;version=3.4.0, */*;q=0.1"
	secret  = "correct-horse-battery"
)

// bench is a Site with one Subnet of each sort and a Machine on pxe.
type bench struct {
	*testsite.Site
	t          *testing.T
	d          *Decider
	conf       Config
	neighbours map[string]api.MAC // interface and address
	conns      atomic.Int64
	at         string
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func span(first, last string) api.AddrRange {
	return api.AddrRange{First: addr(first), Last: addr(last)}
}

func digest(c string) api.SHA256 { return api.SHA256(strings.Repeat(c, 64)) }

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{Site: testsite.Open(t), t: t, neighbours: map[string]api.MAC{}}
	b.conf = Config{
		Store: b.Store, Cache: b.Cache, Leases: b.Leases, Tracker: &machine.Tracker{Store: b.Store, Cache: b.Cache},
		CA: b.CA, Tokens: b.Tokens, Record: b, HTTPPort: 8080, APIPort: 8443,
		Agent: Agent{Digest: digest("9"), Unit: "[Service]\nExecStart=/opt/rackweft/bin/nodeagent\n", Speaker: "[Service]\nExecStart=/opt/rackweft/bin/nodeagent speaker\n"},
		Interfaces: func() map[string][]netip.Prefix {
			return map[string][]netip.Prefix{
				"eth0": testsite.Prefixes("198.18.9.1/24"),
				"eth1": testsite.Prefixes("198.18.9.2/24", "198.18.0.2/24", "198.18.0.1/24"),
				"eth2": testsite.Prefixes("198.18.1.1/24"),
			}
		},
		Neighbour: func(iface string, a netip.Addr) (api.MAC, bool) {
			mac, ok := b.neighbours[iface+" "+a.String()]
			return mac, ok
		},
		Source:  func(netip.Addr) (netip.Addr, error) { return addr("198.18.9.1"), nil },
		Metrics: prometheus.NewRegistry(), Log: b.Log,
	}
	var err error
	b.d, err = New(b.conf)
	if err != nil {
		t.Fatal(err)
	}
	img := &api.Image{Base: testsite.Named("img"), Spec: api.ImageSpec{Version: "1", OS: "debian", IgnitionVersion: "3.5.0", Files: map[string]api.ImageFile{
		"kernel": {SHA256: digest("a")}, "initrd": {SHA256: digest("b")}, "rootfs": {SHA256: digest("c")}}}}
	img.Status.Conditions.Set(time.Now(), api.CondReady, api.True, "Complete", "")
	b.Create(
		&api.Site{Base: testsite.Named("site"), Spec: api.SiteSpec{Domain: "dc1.example", DNS: []netip.Addr{addr("198.18.8.1")}}},
		&api.Zone{Base: testsite.Named("yellow"), Spec: api.ZoneSpec{ASN: 64601}},
		&api.Secret{Base: testsite.Named("vault"), Spec: api.SecretSpec{Data: map[string]string{"password": secret}, Uses: &api.SecretUses{Layers: []string{"base"}}}},
		&api.Subnet{Base: testsite.Named("pxe"), Spec: api.SubnetSpec{Purpose: api.Provisioning, Interface: "eth1", Prefixes: testsite.Prefixes("198.18.0.0/24"), Range: span("198.18.0.100", "198.18.0.109"), Gateway: addr("198.18.0.1")}},
		&api.Subnet{Base: testsite.Named("other-dhcp"), Spec: api.SubnetSpec{Purpose: api.Provisioning, Interface: "eth2", Mode: api.Proxy, Prefixes: testsite.Prefixes("198.18.1.0/24")}},
		&api.Subnet{Base: testsite.Named("far"), Spec: api.SubnetSpec{Purpose: api.Provisioning, Prefixes: testsite.Prefixes("198.18.3.0/24"), Range: span("198.18.3.100", "198.18.3.109"), Relays: []netip.Addr{addr("198.18.3.1")}}},
		&api.Subnet{Base: testsite.Named("prod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: testsite.Prefixes("198.18.8.0/24"), Gateway: addr("198.18.8.1")}},
		&api.Layer{Base: testsite.Named("base"), Spec: api.LayerSpec{Butane: "storage:\n  files:\n    - path: /etc/vault\n      mode: 0600\n      contents:\n        inline: {{ secret \"vault\" \"password\" | quote }}\n"}},
		img,
		&api.Profile{Base: testsite.Named("worker"), Spec: api.ProfileSpec{Image: "img", Layers: []string{"base"}, KernelArguments: []string{"console=ttyS0"}}},
		&api.Machine{Base: testsite.Named(host), Spec: api.MachineSpec{Zone: "yellow", Profile: "worker", Links: []api.Link{
			{Name: "pxe0", MAC: hostMAC, Subnet: "pxe"},
			{Name: "prod0", MAC: "52:54:00:01:07:01", Subnet: "prod", Addresses: []netip.Addr{addr("198.18.8.7")}},
		}}},
	)
	if err := b.d.ApplySubnets(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

func client(mac string, change ...func(*dhcp.Client)) dhcp.Client {
	hw, _ := net.ParseMAC(mac)
	c := dhcp.Client{MAC: hw, Kind: dhcp.PXE, Arch: append(dhcp.Client{}.Arch, 7), Interface: "eth1", Local: addr("198.18.0.2")}
	for _, f := range change {
		f(&c)
	}
	return c
}

func boots(mac, from string) httpboot.Client {
	hw, _ := net.ParseMAC(mac)
	return httpboot.Client{MAC: hw, Addr: addr(from)}
}

// lease gets an address for a MAC as DHCP does.
func (b *bench) lease(mac string) netip.Addr {
	b.t.Helper()
	a, err := b.d.Offer(b.t.Context(), client(mac))
	if err == nil {
		a, err = b.d.Request(b.t.Context(), client(mac), a.Address)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return a.Address
}

// asks is a request for the pointer of attempt try-1, with the key of its script,
// on a connection of its own.
func (b *bench) asks(from string) httpboot.PointerRequest {

	m := b.Machine(host)
	m.Status.Attempt = testsite.Attempt("try-1", "")
	return httpboot.PointerRequest{Machine: host, Key: b.d.keys.secret(m, ca.PurposePointer, api.TrustMAC), Accept: accept, Peer: addr(from), Conn: fmt.Sprint(b.conns.Add(1))}
}

// fetches is a request for the config of attempt try-1, with the key and token of
// its pointer, on a connection of its own.
func (b *bench) fetches(from string) ConfigRequest {

	m := b.Machine(host)
	m.Status.Attempt = testsite.Attempt("try-1", "")
	return ConfigRequest{Machine: host, Key: b.d.keys.secret(m, ca.PurposeConfigURL, api.TrustMAC), Token: b.d.keys.secret(m, ca.PurposeConfig, api.TrustMAC),
		Accept: accept, Peer: addr(from), Conn: fmt.Sprint(b.conns.Add(1))}
}

// pointer fetches the pointer whole.
func (b *bench) pointer(r httpboot.PointerRequest) (httpboot.Pointer, error) {
	p, err := b.d.Pointer(b.t.Context(), r)
	if err == nil {
		p.Sent(true)
	}
	b.Sync()
	return p, err
}

// config fetches the config whole.
func (b *bench) config(r ConfigRequest) (HostConfig, error) {
	c, err := b.d.ConfigFor(b.t.Context(), r)
	if err == nil {
		c.Sent(true)
	}
	b.Sync()
	return c, err
}

func (b *bench) attempt(stage api.Stage) *api.Machine {
	b.t.Helper()
	return b.Change(host, func(m *api.Machine) { m.Status.Attempt, m.Status.HostKey = testsite.Attempt("try-1", stage), "" })
}

func TestDHCP(t *testing.T) {
	b := newBench(t)
	b.Create(
		&api.Machine{Base: testsite.Named("pinned"), Spec: api.MachineSpec{Links: []api.Link{{Name: "pxe0", MAC: "52:54:00:01:08:00", Subnet: "pxe", Addresses: []netip.Addr{addr("198.18.0.8")}}}}},
		&api.Machine{Base: testsite.Named("bonded"), Spec: api.MachineSpec{Links: []api.Link{{Name: "bond0", Bond: &api.Bond{Mode: "802.3ad", Members: []api.MAC{"52:54:00:01:09:00", "52:54:00:01:09:01"}}, Subnet: "pxe", Addresses: []netip.Addr{addr("198.18.0.9")}}}}},
		&api.Machine{Base: testsite.Named("odd"), Spec: api.MachineSpec{Boot: api.Boot{File: "odd.efi", VendorPXE: "always"}, Links: []api.Link{{Name: "pxe0", MAC: "52:54:00:01:0a:00"}}}},
	)
	if err := b.d.ApplySubnets(t.Context()); err != nil {
		t.Fatal(err)
	}
	onProxy := func(c *dhcp.Client) { c.Interface, c.Local = "eth2", addr("198.18.1.1") }
	relayed := func(relay string) func(*dhcp.Client) {
		return func(c *dhcp.Client) {
			c.Interface, c.Relay, c.Link, c.Local = "eth0", addr(relay), addr(relay), addr("198.18.9.1")
		}
	}
	for _, c := range []struct {
		name       string
		client     dhcp.Client
		address    string // or prefix of it
		server     string
		file       string
		err        error
		discovered bool
	}{
		{name: "registered", client: client(hostMAC), address: "198.18.0.10", server: "198.18.0.2", file: "snponly.efi"},
		{name: "broadcast, and the interface has several addresses", client: client(hostMAC, func(c *dhcp.Client) { c.Local = addr("198.18.9.2") }), address: "198.18.0.10", server: "198.18.0.2", file: "snponly.efi"},
		{name: "pinned", client: client("52:54:00:01:08:00"), address: "198.18.0.8", server: "198.18.0.2", file: "snponly.efi"},
		{name: "a bond's first member", client: client("52:54:00:01:09:00"), address: "198.18.0.9", server: "198.18.0.2", file: "snponly.efi"},
		{name: "a bond's other member", client: client("52:54:00:01:09:01"), address: "198.18.0.10", server: "198.18.0.2", file: "snponly.efi"},
		{name: "odd firmware", client: client("52:54:00:01:0a:00"), address: "198.18.0.10", server: "198.18.0.2", file: "odd.efi"},
		{name: "iPXE", client: client(hostMAC, func(c *dhcp.Client) { c.Kind, c.HTTP = dhcp.IPXE, true }), address: "198.18.0.10", server: "198.18.0.2", file: "http://198.18.0.2:8080/boot.ipxe"},
		{name: "unregistered", client: client("52:54:00:ff:00:01"), address: "198.18.0.10", server: "198.18.0.2", file: "snponly.efi", discovered: true},
		{name: "unregistered, an operating system", client: client("52:54:00:ff:00:02", func(c *dhcp.Client) { c.Kind, c.Arch = dhcp.None, nil }), address: "198.18.0.10", server: "198.18.0.2"},
		{name: "proxied", client: client(hostMAC, onProxy), server: "198.18.1.1", file: "snponly.efi"},
		{name: "relayed", client: client("52:54:00:ff:00:03", relayed("198.18.3.1")), address: "198.18.3.10", server: "198.18.9.1", file: "snponly.efi", discovered: true},
		{name: "a relay that the Subnet does not name", client: client(hostMAC, relayed("198.18.3.2")), err: dhcp.ErrNotMine},
		{name: "a relay of no Subnet", client: client(hostMAC, relayed("198.18.4.1")), err: dhcp.ErrNotMine},
		{name: "another interface", client: client(hostMAC, func(c *dhcp.Client) { c.Interface = "eth7" }), err: dhcp.ErrNotMine},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, err := b.d.Offer(t.Context(), c.client)
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if c.err != nil {
				return
			}
			got := ""
			if a.Address.IsValid() {
				got = a.Address.String()
			}
			if !strings.HasPrefix(got, c.address) || got == "" != (c.address == "") {
				t.Errorf("address %q, want %s…", got, c.address)
			}
			if a.Server != addr(c.server) || a.Boot.Filename != c.file {
				t.Errorf("server %s, file %q (%s)", a.Server, a.Boot.Filename, a.Boot.Reason)
			}
			b.Sync()
			m, known := store.CachedMachineByMAC(b.Cache, api.MAC(c.client.MAC.String()))
			if c.discovered != (known && isDiscovered(m)) {
				t.Errorf("discovered = %v", !c.discovered)
			}
		})
	}
	if why := b.Why("dhcp"); !strings.Contains(why, "eth7") {
		t.Errorf("the last decision is %q", why)
	}
	t.Run("a REQUEST on a proxied Subnet is another server's", func(t *testing.T) {
		if _, err := b.d.Request(t.Context(), client(hostMAC, onProxy), addr("198.18.1.50")); !errors.Is(err, dhcp.ErrNotMine) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a REQUEST for somebody else's address is refused", func(t *testing.T) {
		var refusal *dhcp.Refusal
		if _, err := b.d.Request(t.Context(), client(hostMAC), addr("198.18.0.8")); !errors.As(err, &refusal) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("an INFORM from outside the Subnet is not answered", func(t *testing.T) {
		if _, err := b.d.Inform(t.Context(), client(hostMAC, func(c *dhcp.Client) { c.ClientAddr = addr("203.0.113.1") })); !errors.Is(err, dhcp.ErrNotMine) {
			t.Errorf("error %v", err)
		}
	})
}

func TestScript(t *testing.T) {
	b := newBench(t)
	at := b.lease(hostMAC).String()
	stranger := b.lease("52:54:00:ff:00:01").String()
	b.neighbours["eth2 198.18.1.50"] = hostMAC
	for _, c := range []struct {
		name    string
		machine func(*api.Machine)
		profile func(*api.Profile)
		image   func(*api.Image)
		mac     string
		from    string
		held    string // "" when the script is served
		asked   bool   // an unsolicited boot was noted
	}{
		{name: "unknown", mac: "52:54:00:ff:00:09", held: "no Machine has MAC"},
		{name: "discovered", mac: "52:54:00:ff:00:01", from: stranger, held: "no Machine has MAC"},
		{name: "Off", machine: func(m *api.Machine) { m.Spec.State = api.StateOff }, held: "state Off"},
		{name: "Maintenance", machine: func(m *api.Machine) { m.Spec.State = api.StateMaintenance }, held: "state Maintenance"},
		{name: "no attempt", machine: func(m *api.Machine) { m.Status.Attempt = nil }, held: "no BootAttempt is open", asked: true},
		{name: "open attempt"},
		{name: "reset before Ignition had the pointer", machine: func(m *api.Machine) { m.Status.Attempt.Stage = api.StageInitrd }},
		{name: "attempt past the pointer", machine: func(m *api.Machine) { m.Status.Attempt.Stage = api.StagePointer }, held: "no BootAttempt is open", asked: true},
		{name: "attempt failed", machine: func(m *api.Machine) {
			m.Status.Attempt.Result, m.Status.Attempt.Message = api.ResultFailed, "no kernel came"
		}, held: "no kernel came", asked: true},
		{name: "window over", machine: func(m *api.Machine) { m.Status.Attempt.Deadline = time.Now().Add(-time.Second) }, held: "no BootAttempt is open", asked: true},
		{name: "held by the controller", machine: func(m *api.Machine) {
			m.Status.Attempt = nil
			m.Status.Conditions.Set(time.Now(), api.CondHeld, api.True, "LimitTotal", "too many at once")
		}, held: "too many at once", asked: true},
		{name: "missing Profile", machine: func(m *api.Machine) { m.Spec.Profile = "gone" }, held: `Profile "gone" does not exist`},
		{name: "missing Image", profile: func(p *api.Profile) { p.Spec.Image = "gone" }, held: `Image "gone" does not exist`},
		{name: "Image is not complete", image: func(i *api.Image) {
			i.Status.Conditions.Set(time.Now(), api.CondReady, api.False, "FileMissing", "file kernel is not held")
		}, held: "file kernel is not held"},
		{name: "Image without a root file system", image: func(i *api.Image) { delete(i.Spec.Files, "rootfs") }, held: `no file "rootfs"`},
		{name: "Image that is a disk", image: func(i *api.Image) { i.Spec.Files = map[string]api.ImageFile{"disk": {SHA256: digest("d")}} }, held: `no file "kernel"`},
		{name: "disk install", profile: func(p *api.Profile) { p.Spec.Install = &api.Install{Disk: "/dev/sda"} }, held: "spec.install"},
		{name: "address that nobody has", from: "198.18.0.250", held: "not leased"},
		{name: "proxied Subnet", from: "198.18.1.50"},
		{name: "proxied Subnet, no neighbour", from: "198.18.1.51", held: "no neighbour"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.Change(host, func(m *api.Machine) {
				m.Spec.State, m.Spec.Profile, m.Status.Conditions, m.Status.BootAsked = api.StateActive, "worker", nil, time.Time{}
				m.Status.Attempt = testsite.Attempt("try-1", api.StageDHCP)
				if c.machine != nil {
					c.machine(m)
				}
			})
			restore := b.edit(c.profile, c.image)
			defer restore()
			mac, from := hostMAC, at
			if c.mac != "" {
				mac = c.mac
			}
			if c.from != "" {
				from = c.from
			}
			s, err := b.d.Script(t.Context(), boots(mac, from))
			b.Sync()
			var hold *httpboot.Hold
			switch {
			case c.held == "" && err != nil:
				t.Fatal(err)
			case c.held == "":
				if !strings.HasPrefix(s.Kernel, "http://198.18.") || len(s.Initrd) != 1 || !slices.Contains(s.Args, "console=ttyS0") {
					t.Errorf("script %+v", s)
				}
				if m := b.Machine(host); m.Status.Attempt.Stage.Index() < api.StageScript.Index() || m.Status.Addresses[0] != addr(from) {
					t.Errorf("stage %s, addresses %v", m.Status.Attempt.Stage, m.Status.Addresses)
				}
			case !errors.As(err, &hold) || !strings.Contains(hold.Reason, c.held):
				t.Errorf("answer %v, want held: %s", err, c.held)
			}
			if asked := !b.Machine(host).Status.BootAsked.IsZero(); asked != c.asked {
				t.Errorf("noted as an unsolicited boot: %v", asked)
			}
		})
	}
}

// TestStrangersChangeNothing: whoever only says the Machine's MAC or name, from
// an address that is not the Machine's, leaves it as it is.
func TestStrangersChangeNothing(t *testing.T) {
	b := newBench(t)
	stranger := b.lease("52:54:00:ff:00:01")
	b.lease(hostMAC)
	for _, stage := range []api.Stage{"", api.StageDHCP, api.StagePointer, api.StageJoined} {
		for _, from := range []netip.Addr{stranger, addr("198.18.0.250")} {
			b.Change(host, func(m *api.Machine) {
				m.Status.Attempt, m.Status.BootAsked = nil, time.Time{}
				if stage != "" {
					m.Status.Attempt = testsite.Attempt("try-1", stage)
				}
			})
			before := b.Machine(host).Metadata.ResourceVersion
			if _, err := b.d.Script(t.Context(), boots(hostMAC, from.String())); err == nil {
				t.Errorf("%s at stage %q got a script", from, stage)
			}
			if _, err := b.d.Pointer(t.Context(), b.asks(from.String())); err == nil {
				t.Errorf("%s at stage %q got the pointer", from, stage)
			}
			b.d.Fetched(t.Context(), from, "snponly.efi")
			b.d.FetchedBlob(t.Context(), from, digest("a"))
			for range 100 {
				_, _ = b.d.ConfigFor(t.Context(), ConfigRequest{Machine: host, Token: "made-up", Peer: from, Accept: accept})
			}
			b.Sync()
			if now := b.Machine(host).Metadata.ResourceVersion; now != before {
				t.Errorf("%s at stage %q changed the Machine: %+v", from, stage, b.Machine(host).Status)
			}
		}
	}
	if !b.d.book.ledger.admit(api.Decision{Machine: host, Question: "script", Answer: "served"}, false) {
		t.Error("strangers used up what is kept of the Machine's own decisions")
	}
}

// edit changes the Profile and the Image, and returns what undoes it.
func (b *bench) edit(profile func(*api.Profile), img func(*api.Image)) (restore func()) {
	b.t.Helper()
	p, _ := store.Cached[api.Profile](b.Cache, "worker")
	i, _ := store.Cached[api.Image](b.Cache, "img")
	put := func(profile func(*api.Profile), img func(*api.Image)) {
		_, err := store.Mutate(b.t.Context(), b.Store, "worker", func(p *api.Profile) error {
			if profile != nil {
				profile(p)
			}
			return nil
		})
		if err == nil {
			_, err = store.Mutate(b.t.Context(), b.Store, "img", func(i *api.Image) error {
				if img != nil {
					img(i)
				}
				return nil
			})
		}
		if err != nil {
			b.t.Fatal(err)
		}
		b.Sync()
	}
	put(profile, img)
	return func() {
		put(func(now *api.Profile) { now.Spec = p.Spec }, func(now *api.Image) { now.Spec, now.Status = i.Spec, i.Status })
	}
}

func TestKernelArguments(t *testing.T) {
	facts := bootFacts{rootfs: "http://s/blobs/sha256/c", ignition: "http://s/ignition/pointer/52-54", mac: hostMAC}
	for _, c := range []struct {
		os   string
		own  []string
		want []string
	}{
		{"debian", nil, []string{"rackweft.rootfs=http://s/blobs/sha256/c", "rackweft.rootfs.sha256=" + strings.Repeat("c", 64), "ignition.firstboot", "ignition.platform.id=metal", "ignition.config.url=http://s/ignition/pointer/52-54", "BOOTIF=" + hostMAC, "systemd.firstboot=off"}},
		{"flatcar", nil, []string{"flatcar.first_boot=1", "ignition.config.url=http://s/ignition/pointer/52-54"}},
		{"fcos", nil, []string{"coreos.live.rootfs_url=http://s/blobs/sha256/c", "ignition.firstboot", "ignition.platform.id=metal", "ignition.config.url=http://s/ignition/pointer/52-54"}},
		{"debian", []string{"a=${mac}", "b=${ignition_url}${rootfs_url}"}, []string{"a=" + hostMAC, "b=http://s/ignition/pointer/52-54http://s/blobs/sha256/c"}},
	} {
		img := &api.Image{Spec: api.ImageSpec{OS: c.os, KernelArguments: c.own, Files: map[string]api.ImageFile{"rootfs": {SHA256: digest("c")}}}}
		if got := imageArguments(img, facts); !slices.Equal(got, c.want) {
			t.Errorf("%s %q:\n got %q\nwant %q", c.os, c.own, got, c.want)
		}
	}
}

func TestPointer(t *testing.T) {
	b := newBench(t)
	at := b.lease(hostMAC).String()
	other := b.lease("52:54:00:ff:00:01").String()
	b.neighbours["eth2 198.18.1.50"] = hostMAC
	b.neighbours["eth2 198.18.1.51"] = "52:54:00:ff:00:01"
	for _, c := range []struct {
		name, from, accept, held, refused string
		machine                           func(*api.Machine)
		ask                               func(*httpboot.PointerRequest)
	}{
		{name: "served"},
		{name: "proxied Subnet", from: "198.18.1.50"},
		{name: "proxied Subnet, another's MAC", from: "198.18.1.51", held: "not one of Machine r1u07"},
		{name: "MAC not leased", from: "198.18.0.200", held: "not leased"},
		{name: "address leased to another", from: other, held: "not one of Machine r1u07"},
		{name: "joined already", machine: func(m *api.Machine) { m.Status.Attempt.Stage = api.StageJoined }, held: "two came for the pointer"},
		{name: "window over", machine: func(m *api.Machine) { m.Status.Attempt.Deadline = time.Now().Add(-time.Second) }, refused: "not valid here and now"},
		{name: "no attempt", machine: func(m *api.Machine) { m.Status.Attempt = nil }, refused: "not valid here and now"},
		{name: "attempt over", machine: func(m *api.Machine) { m.Status.Attempt.Result = api.ResultFailed }, held: "a BootAttempt that is over"},
		{name: "another attempt is open", machine: func(m *api.Machine) {
			m.Status.History = []api.BootAttempt{*testsite.Attempt("try-1", api.StageDHCP)}
			m.Status.Attempt = testsite.Attempt("try-2", api.StageDHCP)
		}, held: "a BootAttempt that is over"},
		{name: "Ignition is too old", accept: "application/vnd.coreos.ignition+json;version=2.3.0", held: "understands Ignition up to 2.3.0"},
		{name: "a guessed key", ask: func(r *httpboot.PointerRequest) { r.Key = "guessed" }, refused: "not valid here and now"},
		{name: "no key", ask: func(r *httpboot.PointerRequest) { r.Key = "" }, refused: "not valid here and now"},
		{name: "the token in place of the key", ask: func(r *httpboot.PointerRequest) { r.Key = b.fetches(at).Token }, refused: "not valid here and now"},
		{name: "another Machine", ask: func(r *httpboot.PointerRequest) { r.Machine = "nobody" }, refused: "not valid here and now"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.d.attempts.takes = newTakes()
			b.Change(host, func(m *api.Machine) {
				m.Status.Attempt, m.Status.History = testsite.Attempt("try-1", api.StageInitrd), nil
				if c.machine != nil {
					c.machine(m)
				}
			})
			r := b.asks(at)
			if c.from != "" {
				r.Peer = addr(c.from)
			}
			if c.accept != "" {
				r.Accept = c.accept
			}
			if c.ask != nil {
				c.ask(&r)
			}
			p, err := b.d.Pointer(t.Context(), r)
			var hold *httpboot.Hold
			var refusal *httpboot.Refusal
			switch {
			case c.held != "":
				if !errors.As(err, &hold) || !strings.Contains(hold.Reason, c.held) {
					t.Errorf("answer %v, want held: %s", err, c.held)
				}
				return
			case c.refused != "":
				if !errors.As(err, &refusal) || !strings.Contains(refusal.Reason, c.refused) {
					t.Errorf("answer %v, want refused: %s", err, c.refused)
				}
				return
			case err != nil:
				t.Fatal(err)
			}
			f := b.fetches(at)
			if body := string(p.Config); !strings.Contains(body, f.Token) || !strings.Contains(body, f.Key) || strings.Contains(body, secret) || !strings.Contains(p.ContentType, "version=3.4.0") {
				t.Errorf("%s: %s", p.ContentType, body)
			}
			if b.Machine(host).Status.Attempt.Reached(api.StagePointer) {
				t.Error("the stage is reached before the pointer has arrived")
			}
			p.Sent(true)
			a := b.Machine(host).Status.Attempt
			if !a.Reached(api.StagePointer) || len(a.Takers) != 1 || a.Takers[0].Address != r.Peer || a.Takers[0].MAC != hostMAC {
				t.Errorf("attempt %+v", a)
			}
		})
	}
}

func TestConfig(t *testing.T) {
	b := newBench(t)
	at := b.lease(hostMAC).String()
	other := b.lease("52:54:00:ff:00:01").String()
	m := b.Machine(host)
	m.Status.Attempt = testsite.Attempt("try-0", "")
	for _, c := range []struct {
		name                    string
		ask                     func(*ConfigRequest)
		change                  func(*api.Machine)
		trust                   api.TrustLevel
		status                  int
		told, recorded, version string
		from, accept            string
		doesNotCompile          bool
	}{
		{name: "served", version: "3.4.0"},
		{name: "the image's version is the limit", accept: "application/vnd.coreos.ignition+json;version=3.6.0", version: "3.5.0"},
		{name: "no Accept", accept: "*/*", version: "3.5.0"},
		{name: "Ignition is too old", accept: "application/vnd.coreos.ignition+json;version=2.3.0", status: 503, told: "2.3.0", recorded: "2.3.0", doesNotCompile: true},
		{name: "no such Machine", ask: func(r *ConfigRequest) { r.Machine = "nobody" }, status: 403, told: "not valid", recorded: `no Machine is called "nobody"`},
		{name: "no name at all", ask: func(r *ConfigRequest) { r.Machine = "../site" }, status: 403, told: "not valid", recorded: ""},
		{name: "token of another attempt", ask: func(r *ConfigRequest) { r.Token = b.d.keys.secret(m, ca.PurposeConfig, api.TrustMAC) }, status: 403, told: "not valid", recorded: "not this BootAttempt's"},
		{name: "token of another purpose", ask: func(r *ConfigRequest) { r.Token = b.joinToken() }, status: 403, told: "not valid", recorded: "not this BootAttempt's"},
		{name: "URL of another attempt", ask: func(r *ConfigRequest) { r.Key = b.d.keys.secret(m, ca.PurposeConfigURL, api.TrustMAC) }, status: 403, told: "not valid", recorded: "URL is not this BootAttempt's"},
		{name: "URL of another level", ask: func(r *ConfigRequest) {
			now := b.Machine(host)
			r.Key = b.d.keys.secret(now, ca.PurposeConfigURL, api.TrustNonce)
		}, status: 403, told: "not valid", recorded: "URL is not this BootAttempt's"},
		{name: "after the window", change: func(m *api.Machine) { m.Status.Attempt.Deadline = time.Now().Add(-time.Second) }, status: 403, told: "not valid", recorded: "window is over"},
		{name: "after the attempt", change: func(m *api.Machine) { m.Status.Attempt.Result = api.ResultFailed }, status: 403, told: "not valid", recorded: "which is over"},
		{name: "wrong address", from: other, status: 403, told: "not one of Machine", recorded: "not one of Machine"},
		{name: "production address", from: "198.18.8.7", status: 403, told: "not leased", recorded: "not leased"},
		{name: "joined already", change: func(m *api.Machine) { m.Status.Attempt.Stage = api.StageJoined }, status: 503, told: "two came for the config", recorded: "two came for the config"},
		{name: "a TPM is required", trust: api.TrustTPM, status: 503, told: "trust level tpm is required (by the Site)", recorded: "trust level tpm"},
		{name: "the nonce is required", trust: api.TrustNonce, status: 503, told: "has reached token", recorded: "has reached token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.d.attempts.takes = newTakes()
			b.Change(host, func(m *api.Machine) {
				m.Status.Attempt = testsite.Attempt("try-1", api.StagePointer)
				if c.change != nil {
					c.change(m)
				}
			})
			b.trust(c.trust)
			r := b.fetches(at)
			if c.from != "" {
				r.Peer = addr(c.from)
			}
			if c.accept != "" {
				r.Accept = c.accept
			}
			if c.ask != nil {
				c.ask(&r)
			}
			answer, err := b.d.ConfigFor(t.Context(), r)
			if testsite.Status(err) != c.status {
				t.Fatalf("answer %v, want %d", err, c.status)
			}
			if c.status != 0 {
				if !strings.Contains(err.Error(), c.told) || !strings.Contains(b.Why("config"), c.recorded) {
					t.Errorf("told %q, recorded %q", err, b.Why("config"))
				}
				if m := b.Machine(host); c.doesNotCompile && m.Status.Conditions.Get(machine.CondConfig).Status != api.False {
					t.Errorf("conditions %+v", m.Status.Conditions)
				}
				return
			}
			var config struct{ Ignition struct{ Version string } }
			if err := json.Unmarshal(answer.Body, &config); err != nil {
				t.Fatal(err)
			}
			if config.Ignition.Version != c.version || !strings.HasSuffix(answer.ContentType, "version="+c.version) {
				t.Errorf("version %s, type %s", config.Ignition.Version, answer.ContentType)
			}
			if b.Machine(host).Status.Attempt.Reached(api.StageConfig) {
				t.Error("the stage is reached before the config has arrived")
			}
			answer.Sent(true)
			if a := b.Machine(host).Status.Attempt; a.Trust != api.TrustToken || a.TrustWhy == "" || !a.Reached(api.StageConfig) {
				t.Errorf("attempt %+v", a)
			}
			if body := string(answer.Body); !strings.Contains(body, secret) || !strings.Contains(body, "198.18.8.7") {
				t.Errorf("config %s", body)
			}
		})
	}
}

func (b *bench) joinToken() string {
	m := b.Machine(host)
	m.Status.Attempt = testsite.Attempt("try-1", "")
	return b.d.keys.secret(m, ca.PurposeJoin, api.TrustMAC)
}

func (b *bench) trust(level api.TrustLevel) {
	b.t.Helper()
	if level == "" {
		level = api.TrustToken
	}
	_, err := store.Mutate(b.t.Context(), b.Store, "site", func(s *api.Site) error { s.Spec.Trust.Minimum = level; return nil })
	if err != nil {
		b.t.Fatal(err)
	}
	b.Sync()
}

func TestJoin(t *testing.T) {
	b := newBench(t)
	at := b.lease(hostMAC)
	uid := b.Machine(host).Metadata.UID
	token := b.joinToken()
	csr, key := b.Request()
	second, _ := b.Request()
	join := func(token string, peer netip.Addr, csr string) (*api.JoinResponse, error) {
		defer b.Sync()
		return b.d.Join(t.Context(), token, peer, api.JoinRequest{Machine: host, CSR: csr, Time: time.Unix(0, 0)})
	}
	for _, c := range []struct {
		name, token, csr string
		from             netip.Addr
		status           int
	}{
		{"wrong token", "x", csr, at, 403},
		{"the token of the config", b.fetches(at.String()).Token, csr, at, 403},
		{"another address", token, csr, addr("198.18.0.77"), 403},
		{"no request", token, "junk", at, 400},
		{"leased address", token, csr, at, 0},
		{"pinned production address", token, csr, addr("198.18.8.7"), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.attempt(api.StageConfig)
			r, err := join(c.token, c.from, c.csr)
			if testsite.Status(err) != c.status {
				t.Fatalf("answer %v, want %d", err, c.status)
			}
			m := b.Machine(host)
			if joined := m.Status.HostKey != ""; joined != (c.status == 0) {
				t.Errorf("host key %q", m.Status.HostKey)
			}
			if c.status == 0 && (r.UID != uid || len(r.API) == 0 || m.Status.HostKey != key || !m.Status.Attempt.Reached(api.StageJoined)) {
				t.Errorf("answer %+v, attempt %+v", r, m.Status.Attempt)
			}
		})
	}
	t.Run("the same key again is the same join", func(t *testing.T) {
		b.attempt(api.StageConfig)
		for range 2 {
			if _, err := join(token, at, csr); err != nil {
				t.Fatal(err)
			}
		}
		if m := b.Machine(host); !m.Status.Attempt.Open() || m.Status.HostKey != key {
			t.Errorf("%+v", m.Status)
		}
	})
	t.Run("another key fails the attempt and revokes both", func(t *testing.T) {
		b.attempt(api.StageConfig)
		if _, err := join(token, at, csr); err != nil {
			t.Fatal(err)
		}
		if _, err := join(token, at, second); testsite.Status(err) != http.StatusForbidden {
			t.Fatalf("answer %v", err)
		}
		m := b.Machine(host)
		if m.Status.Attempt.Result != api.ResultFailed || m.Status.Attempt.Cause != api.CauseSecondTaker || m.Status.HostKey != "" {
			t.Errorf("%+v", m.Status)
		}
		if b.Happened("SecondTaker") != 1 || m.Status.Conditions.Get(api.CondTrust).Reason != "SecondTaker" {
			t.Errorf("events %v, conditions %v", b.Events(), m.Status.Conditions)
		}
		if _, err := join(token, at, csr); testsite.Status(err) != http.StatusForbidden {
			t.Errorf("the first key joins again: %v", err)
		}
	})
}

func TestRefusalIsMadeOnTheStore(t *testing.T) {
	b := newBench(t)
	b.attempt(api.StagePointer)
	// A Decider whose cache is one that never hears of the attempt.
	conf := b.conf
	conf.Cache, conf.Metrics = store.NewCache(b.Store, b.Log), nil
	stale, err := New(conf)
	if err != nil {
		t.Fatal(err)
	}
	m, _, reason, err := stale.bearer(t.Context(), host, b.fetches("198.18.0.100").Token, ca.PurposeConfig)
	if err != nil || reason != "" || m == nil {
		t.Errorf("a cache that is behind refuses for good: %q, %v", reason, err)
	}
}

func TestLedger(t *testing.T) {
	now := time.Now()
	l := newLedger()
	l.now = func() time.Time { return now }
	stranger := func(i int) api.Decision {
		return api.Decision{MAC: api.MAC(fmt.Sprintf("52:54:%02x:%02x:%02x:%02x", i>>24, i>>16&255, i>>8&255, i&255)), Question: "dhcp", Answer: "leased"}
	}
	known := api.Decision{Machine: host, Question: "script", Answer: "served"}
	admitted := 0
	for i := range 100_000 {
		if l.admit(stranger(i), true) {
			admitted++
		}
	}
	if admitted != 200 || len(l.strangers) != admitted {
		t.Errorf("a flood of strangers wrote %d records and left %d", admitted, len(l.strangers))
	}
	if !l.admit(known, false) {
		t.Error("a Machine pays for the strangers")
	}
	if l.admit(known, false) {
		t.Error("a repeated answer is written at once")
	}
	known.Attempt = "2"
	if !l.admit(known, false) {
		t.Error("the same answer in another BootAttempt is not written")
	}
	now = now.Add(repeatAfter)
	if !l.admit(known, false) {
		t.Error("a repeated answer is not written later either")
	}
	first := stranger(0)
	if l.admit(first, true) {
		t.Error("a stranger is written every minute")
	}
	now = now.Add(strangerAfter)
	if !l.admit(first, true) || len(l.strangers) != 1 {
		t.Errorf("a stranger is never written again; %d are remembered", len(l.strangers))
	}
	n := 0
	for i := range 1000 {
		if l.admit(api.Decision{Machine: host, Question: "dhcp", Answer: fmt.Sprint(i)}, false) {
			n++
		}
	}
	if n > 60 {
		t.Errorf("somebody with a registered MAC wrote %d records at once", n)
	}
}

func TestDiscoveredAreBounded(t *testing.T) {
	d := newSightings()
	now, n := time.Now(), 0
	for i := range 1000 {
		if d.due(api.MAC(fmt.Sprint(i)), now) {
			n++
		}
	}
	if n != maxDiscovered {
		t.Errorf("%d written down", n)
	}
	if !d.due("0", now.Add(seenEvery)) {
		t.Error("never again")
	}
}

func TestDiscoveredIsSeenAgain(t *testing.T) {
	b := newBench(t)
	const mac = "52:54:00:ff:00:01"
	b.lease(mac)
	b.Sync()
	name := "discovered-525400ff0001"
	b.Change(name, func(m *api.Machine) { m.Status.LastSeen = time.Unix(0, 0).UTC() })
	b.d.strangers.seen = newSightings()
	b.lease(mac)
	if seen := b.Machine(name).Status.LastSeen; time.Since(seen) > time.Hour {
		t.Errorf("last seen %s", seen)
	}
	if n := b.Happened("Discovered"); n != 1 {
		t.Errorf("%d events", n)
	}
}

func TestSubnetConditions(t *testing.T) {
	b := newBench(t)
	b.Create(
		&api.Subnet{Base: testsite.Named("wrong"), Spec: api.SubnetSpec{Purpose: api.Provisioning, Interface: "eth0", Prefixes: testsite.Prefixes("2001:db8::/64"), Range: span("2001:db8::1", "2001:db8::9")}},
		&api.Subnet{Base: testsite.Named("absent"), Spec: api.SubnetSpec{Purpose: api.Provisioning, Interface: "eth9", Prefixes: testsite.Prefixes("198.18.20.0/24")}},
		&api.Subnet{Base: testsite.Named("addressless"), Spec: api.SubnetSpec{Purpose: api.Provisioning, Interface: "eth0", Prefixes: testsite.Prefixes("198.18.21.0/24")}},
		&api.Subnet{Base: testsite.Named("blind"), Spec: api.SubnetSpec{Purpose: api.Provisioning, Mode: api.Proxy, Prefixes: testsite.Prefixes("198.18.22.0/24")}},
	)
	if err := b.d.ApplySubnets(t.Context()); err != nil {
		t.Fatal(err)
	}
	busy := func(iface string) error {
		if iface == "eth2" {
			return errors.New("UDP port 67: address already in use")
		}
		return nil
	}
	for name, want := range map[string]string{
		"pxe": "True Serving", "far": "True Relayed", "prod": "True NotServed", "wrong": "False Invalid", "absent": "False NoInterface",
		"addressless": "False NoAddress", "blind": "False ProxyNeedsInterface", "other-dhcp": "False NotListening",
	} {
		s, _ := store.Cached[api.Subnet](b.Cache, name)
		c, ok := b.d.JudgeSubnet(s, busy)
		if !ok || string(c.Status)+" "+c.Reason != want {
			t.Errorf("Subnet %s: %+v, want %s", name, c, want)
		}
	}
	if a := b.lease(hostMAC); !a.IsValid() {
		t.Error("a wrong Subnet takes the others along")
	}
}

func TestAPIForIsStable(t *testing.T) {
	b := newBench(t)
	b.d.own.advertise = []string{"https://boot.dc1.example:8443"}
	want := []string{"https://boot.dc1.example:8443", "https://198.18.0.2:8443"}
	before := b.d.APIFor(b.Machine(host))
	b.lease(hostMAC)
	for range 20 {
		if got := b.d.APIFor(b.Machine(host)); !slices.Equal(got, want) || !slices.Equal(before, want) {
			t.Fatalf("%v, then %v", before, got)
		}
	}
	behind := &api.Machine{Status: api.MachineStatus{Addresses: []netip.Addr{addr("198.18.3.100")}}}
	if got := b.d.APIFor(behind); !slices.Contains(got, "https://198.18.9.1:8443") {
		t.Errorf("behind a relay: %v", got)
	}
}

// TestNothingLeaks boots a Machine by hand, refuses a few callers on the way, and
// looks for tokens and Secrets in everything that was recorded or logged.
func TestNothingLeaks(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	m := b.attempt(api.StagePowerOn)
	at := b.lease(hostMAC)
	step := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		b.Sync()
	}
	b.d.Fetched(ctx, at, "snponly.efi")
	script := boots(hostMAC, at.String())
	script.Query = url.Values{"asset": {b.Tokens.Nonce(m.Metadata.UID, "try-1")}}
	_, err := b.d.Script(ctx, script)
	step("script", err)
	for _, d := range []string{"a", "b", "c", "9"} {
		b.d.FetchedBlob(ctx, at, digest(d))
	}
	_, err = b.pointer(b.asks(at.String()))
	step("pointer", err)
	r := b.fetches(at.String())
	config, join, key, pointer := r.Token, b.joinToken(), r.Key, b.asks(at.String()).Key
	stolen := r
	stolen.Token = "stolen-token"
	_, _ = b.d.ConfigFor(ctx, stolen)
	stolen.Machine, stolen.Token = config, config
	_, _ = b.d.ConfigFor(ctx, stolen)
	_, _ = b.d.Pointer(ctx, httpboot.PointerRequest{Machine: host, Key: config, Peer: at, Accept: accept})
	broken, _ := store.Get[api.Layer](ctx, b.Store, "base")
	butane := broken.Spec.Butane
	b.layer("storage: {{ secret \"vault\" \"password\" }}\n")
	if _, err = b.config(r); testsite.Status(err) != 503 || strings.Contains(err.Error(), secret) {
		t.Fatalf("a broken Layer: %v", err)
	}
	b.layer(butane)
	uses := func(layers ...string) {
		t.Helper()
		_, err := store.Mutate(ctx, b.Store, "vault", func(s *api.Secret) error { s.Spec.Uses = &api.SecretUses{Layers: layers}; return nil })
		step("uses", err)
	}
	uses("other")
	if _, err = b.config(r); testsite.Status(err) != 503 || !strings.Contains(err.Error(), "Secret vault is not for Layer base") {
		t.Fatalf("a Layer that is not given the Secret: %v", err)
	}
	if _, _, err := b.d.Origins(b.Machine(host)); err == nil || !strings.Contains(err.Error(), "Secret vault is not for Layer base") {
		t.Errorf("explained is %v", err)
	}
	uses("other", "base")
	_, err = b.config(r)
	step("config", err)
	_, _ = b.d.Join(ctx, "stolen-token", at, api.JoinRequest{Machine: host})
	csr, _ := b.Request()
	_, err = b.d.Join(ctx, join, at, api.JoinRequest{Machine: host, CSR: csr})
	step("join", err)
	_, _, err = b.d.Origins(b.Machine(host))
	step("origins", err)

	if m := b.Machine(host); !m.Status.Attempt.Reached(api.StageJoined) || m.Status.Conditions.Get(machine.CondConfig).Status != api.True {
		t.Errorf("the boot did not come through: %+v", m.Status)
	}
	all, err := json.Marshal([]any{b.Events(), b.Decisions(), b.Machine(host), b.Text()})
	if err != nil {
		t.Fatal(err)
	}
	for what, value := range map[string]string{"a Secret": secret, "the config token": config, "the join token": join, "a wrong token": "stolen-token",
		"the key of the config's URL": key, "the key of the pointer's URL": pointer, "the nonce": b.Tokens.Nonce(m.Metadata.UID, "try-1")} {
		if strings.Contains(string(all), value) {
			t.Errorf("%s stands in the records", what)
		}
	}
	if len(b.Decisions()) < 10 {
		t.Errorf("only %d decisions: %v", len(b.Decisions()), b.Decisions())
	}
}

func (b *bench) layer(butane string) {
	b.t.Helper()
	_, err := store.Mutate(b.t.Context(), b.Store, "base", func(l *api.Layer) error { l.Spec.Butane = butane; return nil })
	if err != nil {
		b.t.Fatal(err)
	}
	b.Sync()
}

func TestMayFetch(t *testing.T) {
	b := newBench(t)
	for d, want := range map[string]bool{"a": true, "9": true, "e": false} {
		if got := b.d.MayFetch(digest(d)); got != want {
			t.Errorf("%s: %v", d, got)
		}
	}
}
