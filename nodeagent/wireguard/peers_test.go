package wireguard

import (
	"crypto/ecdh"
	"encoding/base64"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/rackweft/rackweft/api"
)

func newTestKey(t *testing.T) wgtypes.Key {
	t.Helper()
	k, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func seenPeer(w peer, endpoint string) wgtypes.Peer {
	p := wgtypes.Peer{PublicKey: w.key, Endpoint: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(endpoint))}
	for _, a := range w.addresses {
		p.AllowedIPs = append(p.AllowedIPs, net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())})
	}
	return p
}

// What is as it should be is not named: naming a peer may end its session.
func TestDiff(t *testing.T) {
	own, key := newTestKey(t), newTestKey(t).PublicKey()
	w := peer{host: "h2", key: key, addresses: addrs("198.18.0.2", "2001:db8::2"), port: 51820}
	want := config{key: own, port: 51820, peers: []peer{w}}
	device := func(change func(*wgtypes.Device)) *wgtypes.Device {
		d := &wgtypes.Device{PrivateKey: own, ListenPort: 51820, Peers: []wgtypes.Peer{seenPeer(w, "198.18.0.2:51820")}}
		if change != nil {
			change(d)
		}
		return d
	}
	stranger := newTestKey(t).PublicKey()
	for name, c := range map[string]struct {
		change func(*wgtypes.Device)
		notes  []string
		check  func(wgtypes.Config) bool
	}{
		"as it should be":      {nil, nil, nil},
		"heard from elsewhere": {func(d *wgtypes.Device) { d.Peers[0] = seenPeer(w, "[2001:db8::2]:51820") }, nil, nil},
		"order of addresses":   {func(d *wgtypes.Device) { slices.Reverse(d.Peers[0].AllowedIPs) }, nil, nil},
		"another key": {func(d *wgtypes.Device) { d.PrivateKey = newTestKey(t) }, []string{"set the private key"},
			func(c wgtypes.Config) bool { return *c.PrivateKey == own && len(c.Peers) == 0 }},
		"another port": {func(d *wgtypes.Device) { d.ListenPort = 9 }, []string{"set the port"},
			func(c wgtypes.Config) bool { return *c.ListenPort == 51820 && c.PrivateKey == nil }},
		"a mark": {func(d *wgtypes.Device) { d.FirewallMark = 9 }, []string{"clear the mark"},
			func(c wgtypes.Config) bool { return *c.FirewallMark == 0 }},
		"roamed away": {func(d *wgtypes.Device) { d.Peers[0] = seenPeer(w, "198.18.0.9:51820") }, []string{"set peer h2"},
			func(c wgtypes.Config) bool {
				return c.Peers[0].UpdateOnly && c.Peers[0].Endpoint.String() == "198.18.0.2:51820" && !c.Peers[0].ReplaceAllowedIPs
			}},
		"wider": {func(d *wgtypes.Device) {
			d.Peers[0].AllowedIPs = append(d.Peers[0].AllowedIPs, net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)})
		}, []string{"set peer h2"},
			func(c wgtypes.Config) bool {
				return c.Peers[0].UpdateOnly && c.Peers[0].ReplaceAllowedIPs && len(c.Peers[0].AllowedIPs) == 2 && c.Peers[0].Endpoint == nil
			}},
		"a shared key": {func(d *wgtypes.Device) { d.Peers[0].PresharedKey = stranger }, []string{"set peer h2"},
			func(c wgtypes.Config) bool { return *c.Peers[0].PresharedKey == wgtypes.Key{} }},
		"a stranger": {func(d *wgtypes.Device) { d.Peers = append(d.Peers, wgtypes.Peer{PublicKey: stranger}) }, []string{"remove peer " + stranger.String()},
			func(c wgtypes.Config) bool { return len(c.Peers) == 1 && c.Peers[0].Remove }},
		"none": {func(d *wgtypes.Device) { d.Peers = nil }, []string{"set peer h2"},
			func(c wgtypes.Config) bool { return !c.Peers[0].UpdateOnly && len(c.Peers[0].AllowedIPs) == 2 }},
	} {
		t.Run(name, func(t *testing.T) {
			got, notes := diff(want, device(c.change))
			if !slices.Equal(notes, c.notes) || got.ReplacePeers || c.check != nil && !c.check(got) {
				t.Errorf("%q, %+v", notes, got)
			}
			if strings.Contains(strings.Join(notes, ""), own.String()) {
				t.Error("the notes tell the private key")
			}
		})
	}
}

// One peer cannot take another's address, nor be the host itself.
func TestCompile(t *testing.T) {
	own := newTestKey(t)
	private, err := ecdh.X25519().NewPrivateKey(own[:])
	if err != nil {
		t.Fatal(err)
	}
	a, b := newTestKey(t).PublicKey().String(), newTestKey(t).PublicKey().String()
	peerOf := func(host, key string, at ...string) api.EncryptionPeer {
		return api.EncryptionPeer{Host: host, PublicKey: key, Addresses: addrs(at...)}
	}
	for name, c := range map[string]struct {
		second api.EncryptionPeer
		want   string
	}{
		"good":              {peerOf("h3", b, "198.18.0.3"), ""},
		"no key":            {peerOf("h3", "", "198.18.0.3"), "peer h3 is left out"},
		"short":             {peerOf("h3", base64.StdEncoding.EncodeToString([]byte("x")), "198.18.0.3"), "peer h3 is left out"},
		"another's key":     {peerOf("h3", a, "198.18.0.3"), "the WireGuard key of h2"},
		"this host's key":   {peerOf("h3", own.PublicKey().String(), "198.18.0.3"), "the WireGuard key of this host"},
		"another's address": {peerOf("h3", b, "198.18.0.3", "198.18.0.2"), "the address 198.18.0.2 of h2"},
		"own address":       {peerOf("h3", b, "198.18.0.1"), "the address 198.18.0.1 of this host"},
		"no address":        {peerOf("h3", b), "no address"},
		"everywhere":        {peerOf("h3", b, "0.0.0.0"), "invalid address"},
	} {
		t.Run(name, func(t *testing.T) {
			u := api.Underlay{Addresses: addrs("198.18.0.1"), Encryption: &api.Encryption{Port: 51820,
				Peers: []api.EncryptionPeer{peerOf("h2", a, "198.18.0.2"), c.second}}}
			got, err := compile(private, u)
			if c.want == "" && (err != nil || len(got.peers) != 2) {
				t.Errorf("%d peers, %v", len(got.peers), err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || len(got.peers) != 1) {
				t.Errorf("%d peers, %v, want %q", len(got.peers), err, c.want)
			}
		})
	}
}
