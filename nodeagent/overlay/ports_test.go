package overlay

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/rackweft/rackweft/nodeagent"
)

func TestPortTable(t *testing.T) {
	o := New(Options{Log: slog.New(slog.DiscardHandler)})
	if _, known := o.portsOf("red"); known {
		t.Error("ports are known before SetPorts")
	}
	good := nodeagent.Port{Network: "red", Guest: "a", UID: "uid-a", MAC: "02:00:00:00:00:01", Addresses: []netip.Addr{netip.MustParseAddr("10.5.1.8"), netip.MustParseAddr("fd00:5::8")}}
	with := func(change func(*nodeagent.Port)) nodeagent.Port {
		p := good
		p.Guest, p.UID, p.MAC, p.Addresses = "b", "uid-b", "02:00:00:00:00:02", []netip.Addr{netip.MustParseAddr("10.5.1.10")}
		change(&p)
		return p
	}
	for name, second := range map[string]nodeagent.Port{
		"no Network":        with(func(p *nodeagent.Port) { p.Network = "" }),
		"no uid":            with(func(p *nodeagent.Port) { p.UID = "" }),
		"multicast MAC":     with(func(p *nodeagent.Port) { p.MAC = "01:00:5e:00:00:01" }),
		"the gateway's MAC": with(func(p *nodeagent.Port) { p.MAC = "02:00:a9:fe:01:01" }),
		"the gateway":       with(func(p *nodeagent.Port) { p.Addresses = []netip.Addr{gatewayAddress().Addr()} }),
		"multicast":         with(func(p *nodeagent.Port) { p.Addresses = []netip.Addr{netip.MustParseAddr("ff02::1")} }),
		"broadcast":         with(func(p *nodeagent.Port) { p.Addresses = []netip.Addr{netip.MustParseAddr("255.255.255.255")} }),
		"negative limit":    with(func(p *nodeagent.Port) { p.Inbound = -1 }),
		"the same MAC":      with(func(p *nodeagent.Port) { p.MAC = good.MAC }),
		"the same address":  with(func(p *nodeagent.Port) { p.Addresses = good.Addresses[1:] }),
	} {
		o.SetPorts([]nodeagent.Port{good, second})
		if got, known := o.portsOf("red"); !known || len(got) != 1 || got[0].guest != "a" {
			t.Errorf("%s: ports are %+v", name, got)
		}
	}
	elsewhere := with(func(p *nodeagent.Port) { p.Network, p.MAC, p.Addresses = "blue", good.MAC, good.Addresses })
	o.SetPorts([]nodeagent.Port{good, elsewhere, good})
	for network, guest := range map[string]string{"red": "a", "blue": "b"} {
		if got, _ := o.portsOf(network); len(got) != 1 || got[0].guest != guest || len(got[0].tap) != 15 {
			t.Errorf("ports of %s are %+v", network, got)
		}
	}
	o.SetPorts(nil)
	if got, known := o.portsOf("red"); !known || len(got) != 0 {
		t.Errorf("ports left: %+v", got)
	}
}
