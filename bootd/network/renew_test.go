package network

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// TestAdopt has hosts' words about their leases become what the store says.
func TestAdopt(t *testing.T) {
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()}, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	p, vtep := netip.MustParsePrefix, netip.MustParseAddr("198.18.8.7")
	write := func(kind store.FlannelKind, subnet string, value any) {
		t.Helper()
		id := store.FlannelID{Network: "blue", Kind: kind}
		if subnet != "" {
			id.Subnet = p(subnet)
		}
		if err := s.Flannel.Write(t.Context(), store.FlannelWrite{FlannelID: id, Value: encode(value)}); err != nil {
			t.Fatal(err)
		}
	}
	// The backup: a has 1.0/24, b has 2.0/24, and a is to give up nothing.
	write(store.FlannelOwner, "", ownerRecord{UID: "n", VNI: 10017})
	write(store.FlannelHost, "10.5.1.0/24", hostRecord{Network: "n", Machine: "a", UID: "ua", Buried: 900})
	write(store.FlannelHost, "10.5.2.0/24", hostRecord{Network: "n", Machine: "b", UID: "ub"})
	if err := Renew(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	// Since then a has got 4.0/24 instead, and c, which is new, has b's: b is gone.
	conflicts, err := Adopt(t.Context(), s, Claims{Network: "blue", UID: "n", VNI: 10017, Leases: []HostLease{
		{Machine: "a", UID: "ua", Lease: p("10.5.4.0/24"), VTEP: vtep},
		{Machine: "c", UID: "uc", Lease: p("10.5.2.0/24")},
		{Machine: "d", UID: "ud", Lease: p("10.5.2.0/24")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if len(conflicts) != 1 || !strings.Contains(conflicts[0], "c and d both claim") {
		t.Errorf("the conflicts are %q", conflicts)
	}
	l, err := readLayout(t.Context(), s, "blue")
	if err != nil {
		t.Fatal(err)
	}
	if len(l.hosts) != 2 || l.hosts[p("10.5.4.0/24")].UID != "ua" || l.hosts[p("10.5.2.0/24")].UID != "uc" || l.hosts[p("10.5.4.0/24")].Buried != 0 {
		t.Errorf("the leases are %+v", l.hosts)
	}
	if addr, mac, ok := parseLease(l.subnets[p("10.5.4.0/24")].Value, 10017); !ok || addr != vtep || mac != VTEPMAC("ua", 10017) {
		t.Errorf("flannel reads %s %s %v", addr, mac, ok)
	}
	// A stock flanneld that a host has as a peer keeps its lease for a day.
	f := api.HeldFlanneld{Network: "blue", Lease: p("10.5.9.0/24"), VTEP: netip.MustParseAddr("198.18.8.99"), MAC: "02:00:00:00:00:01"}
	taken := f
	taken.Lease = p("10.5.4.0/24")
	for _, x := range []api.HeldFlanneld{f, taken} {
		if err := Reserve(t.Context(), s, 10017, x); err != nil {
			t.Fatal(err)
		}
	}
	if l, err = readLayout(t.Context(), s, "blue"); err != nil || !l.subnets[f.Lease].TTL || l.subnets[taken.Lease].TTL {
		t.Errorf("the leases are %+v, %v", l.subnets, err)
	}
	// Another Network of the name: nobody has anything of the old one.
	if _, err := Adopt(t.Context(), s, Claims{Network: "blue", UID: "m", VNI: 10018, Leases: []HostLease{{Machine: "a", UID: "ua", Lease: p("10.5.1.0/24"), VTEP: vtep}}}); err != nil {
		t.Fatal(err)
	}
	if l, err = readLayout(t.Context(), s, "blue"); err != nil || len(l.hosts) != 1 || l.of.uid != "m" || l.of.vni != 10018 {
		t.Errorf("the leases are %+v of %+v, %v", l.hosts, l.of, err)
	}
}

// TestAdoptWhatOthersHave has hosts claim what is another's, who has had it since before the backup.
func TestAdoptWhatOthersHave(t *testing.T) {
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()}, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	p := netip.MustParsePrefix
	backup := []store.FlannelWrite{{FlannelID: store.FlannelID{Network: "blue", Kind: store.FlannelOwner}, Value: encode(ownerRecord{UID: "n", VNI: 10017})},
		{FlannelID: store.FlannelID{Network: "blue", Kind: store.FlannelHost, Subnet: p("10.5.2.0/24")}, Value: encode(hostRecord{Network: "n", Machine: "m", UID: "um"})}}
	if err := s.Flannel.Write(t.Context(), backup...); err != nil {
		t.Fatal(err)
	}
	conflicts, err := Adopt(t.Context(), s, Claims{Network: "blue", UID: "n", VNI: 10017, Leases: []HostLease{
		{Machine: "a", UID: "ua", Lease: p("10.5.2.0/24")},
		{Machine: "b", UID: "ub", Lease: p("10.5.0.0/16")},
		{Machine: "c", UID: "uc", Lease: p("10.5.2.128/25")},
		{Machine: "d", UID: "ud", Lease: p("10.5.3.0/24")},
		{Machine: "m", UID: "um", Lease: p("10.5.2.0/24")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := readLayout(t.Context(), s, "blue")
	if err != nil || len(l.hosts) != 2 || l.hosts[p("10.5.2.0/24")].UID != "um" || l.hosts[p("10.5.3.0/24")].UID != "ud" {
		t.Errorf("the leases are %+v, %v", l.hosts, err)
	}
	if len(conflicts) != 3 || !strings.Contains(conflicts[0], "m keeps it") {
		t.Errorf("the conflicts are %q", conflicts)
	}
}
