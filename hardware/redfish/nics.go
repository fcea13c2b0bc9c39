package redfish

import (
	"context"
	"net"
	"strings"

	"github.com/rackweft/rackweft/hardware"
)

// ethernet is what we read of an EthernetInterface.
type ethernet struct {
	Path        text   `json:"@odata.id"`
	ID          text   `json:"Id"`
	Name        text   `json:"Name"`
	Description text   `json:"Description"`
	MAC         text   `json:"MACAddress"`
	Permanent   text   `json:"PermanentMACAddress"`
	Speed       number `json:"SpeedMbps"`
	Link        text   `json:"LinkStatus"`
	Kind        text   `json:"EthernetInterfaceType"`
	Device      text   `json:"UefiDevicePath"`
	VLAN        struct {
		Enabled bool `json:"VLANEnable"`
	} `json:"VLAN"`
}

// virtual: a VLAN on top of a port, which has the port's address.
func (e ethernet) virtual() bool {
	return e.Kind == "Virtual" || e.VLAN.Enabled && e.Kind != "Physical"
}

// toBMC: it leads to the BMC and nowhere else, by the names that vendors give it.
func (e ethernet) toBMC() bool {
	names := strings.ToLower(strings.Join([]string{string(e.ID), string(e.Name), string(e.Description), string(e.Device)}, " "))
	for _, word := range []string{"usb", "rndis", "tomanager", "to manager", "host interface", "hostinterface", "cdc ethernet"} {
		if strings.Contains(names, word) {
			return true
		}
	}
	return false
}

// nics lists the ports with an Ethernet address, each address once: what EthernetInterfaces tells, which on many is what
// the operating system has set up, and then what the adapters tell.
func (w *walk) nics(ctx context.Context) error {
	if err := w.hostInterfaces(ctx); err != nil {
		return err
	}
	ports, err := listed[ethernet](ctx, w, w.sys.EthernetInterfaces, mostRequests)
	if err != nil {
		return err
	}
	for _, e := range ports {
		mac := firstMAC(e.Permanent, e.MAC)
		if e.toBMC() || w.bmcOnly[string(e.Path)] {
			w.bmcOnly[mac] = true
			continue
		}
		if e.virtual() {
			continue
		}
		// Id, not Name: on HPE Name is what the operating system calls it, a bond for instance.
		w.nic(hardware.NIC{Name: string(e.ID), MAC: mac, SpeedMbps: int(e.Speed), Link: string(e.Link)})
	}
	return w.adapters(ctx)
}

// nic adds a port, or what is news of one that is listed.
func (w *walk) nic(n hardware.NIC) {
	if n.MAC == "" || w.bmcOnly[n.MAC] {
		return
	}
	for i := range w.inv.NICs {
		if old := &w.inv.NICs[i]; old.MAC == n.MAC {
			old.Name, old.Model = or(text(old.Name), text(n.Name)), or(text(old.Model), text(n.Model))
			old.Link, old.SpeedMbps = or(text(old.Link), text(n.Link)), max(old.SpeedMbps, n.SpeedMbps)
			return
		}
	}
	w.inv.NICs = append(w.inv.NICs, n)
}

// hostInterfaces notes the interfaces between the system and its BMC.
func (w *walk) hostInterfaces(ctx context.Context) error {
	w.bmcOnly = map[string]bool{}
	type hostInterface struct {
		Interfaces link `json:"HostEthernetInterfaces"`
	}
	all, err := listed[hostInterface](ctx, w, w.manager.HostInterfaces, 8)
	if err != nil {
		return err
	}
	for _, one := range all {
		if one.Interfaces == w.sys.EthernetInterfaces { // iDRAC 9 names all of the system's
			continue
		}
		ports, err := listed[ethernet](ctx, w, one.Interfaces, 8)
		if err != nil {
			return err
		}
		for _, e := range ports {
			w.bmcOnly[string(e.Path)], w.bmcOnly[firstMAC(e.Permanent, e.MAC)] = true, true
		}
	}
	return nil
}

// adapter is what we read of a NetworkAdapter.
type adapter struct {
	ID        text `json:"Id"`
	Model     text `json:"Model"`
	Functions link `json:"NetworkDeviceFunctions"`
	Ports     link `json:"Ports"`
	OldPorts  link `json:"NetworkPorts"` // what Ports were before
}

func (w *walk) adapters(ctx context.Context) error {
	for _, c := range w.shelves {
		adapters, err := listed[adapter](ctx, w, c.Adapters, hardware.MaxNICs)
		if err != nil {
			return err
		}
		for _, a := range adapters {
			if err := w.adapter(ctx, a); err != nil {
				return err
			}
		}
	}
	return nil
}

// adapter reads functions before ports: theirs are the addresses that the operating system sees.
func (w *walk) adapter(ctx context.Context, a adapter) error {
	functions, err := listed[deviceFunction](ctx, w, a.Functions, hardware.MaxNICs)
	if err != nil {
		return err
	}
	for _, f := range functions {
		w.nic(hardware.NIC{Name: within(a.ID, f.ID), Model: string(a.Model), MAC: firstMAC(f.Ethernet.Permanent, f.Ethernet.MAC)})
	}
	at := a.Ports
	if at.ID == "" {
		at = a.OldPorts
	}
	ports, err := listed[port](ctx, w, at, hardware.MaxNICs)
	if err != nil {
		return err
	}
	for _, p := range ports {
		for _, mac := range append(p.Addresses, p.Ethernet.MACs...) {
			w.nic(hardware.NIC{Name: within(a.ID, p.ID), Model: string(a.Model), MAC: firstMAC(mac), SpeedMbps: p.speed(), Link: p.link()})
		}
	}
	return nil
}

type deviceFunction struct {
	ID       text `json:"Id"`
	Ethernet struct {
		MAC       text `json:"MACAddress"`
		Permanent text `json:"PermanentMACAddress"`
	} `json:"Ethernet"`
}

// port is a Port or a NetworkPort.
type port struct {
	ID        text   `json:"Id"`
	Link      text   `json:"LinkStatus"`
	Gbps      number `json:"CurrentSpeedGbps"`
	Mbps      number `json:"CurrentLinkSpeedMbps"`
	Addresses []text `json:"AssociatedNetworkAddresses"`
	Ethernet  struct {
		MACs []text `json:"AssociatedMACAddresses"`
	} `json:"Ethernet"`
}

func (p port) speed() int { return max(int(p.Mbps), int(p.Gbps*1000)) }

// link is as EthernetInterfaces say it.
func (p port) link() string {
	switch p.Link {
	case "Up":
		return "LinkUp"
	case "Down":
		return "LinkDown"
	}
	return string(p.Link)
}

// within names a part of an adapter; Dell's names have the adapter's in front already.
func within(adapter, part text) string {
	if strings.HasPrefix(string(part), string(adapter)) {
		return string(part)
	}
	return string(adapter + "/" + part)
}

// firstMAC is the first that is one, and not all zeroes.
func firstMAC(candidates ...text) string {
	for _, candidate := range candidates {
		mac, err := net.ParseMAC(string(candidate))
		if err == nil && len(mac) == 6 && mac.String() != "00:00:00:00:00:00" {
			return mac.String()
		}
	}
	return ""
}
