package ignition

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

const networkDir = "/etc/systemd/network/"

// Link is a network link of a Machine: exactly one of MAC, Bond and VLAN
// determines its type.
type Link struct {
	Name string // of the interface: at most 15 characters
	MAC  string // of a physical link
	Bond *Bond
	VLAN *VLAN

	DHCP      bool           // ask for addresses, IPv4 and IPv6
	Addresses []netip.Prefix // static, with the prefix length of their Subnet
	Gateways  []netip.Addr   // default routes; at most one per family
	DNS       []netip.Addr
	Domains   []string // searched by the resolver
	NTP       []string // addresses or names
	MTU       int      // bytes; 0 leaves the driver's, or what the VLANs on top need
}

// Bond joins physical links.
type Bond struct {
	Mode    string   // as the kernel names it: 802.3ad, active-backup, …
	Members []string // MACs; they need no Link of their own. The first is the bond's MAC
}

// VLAN is an 802.1Q VLAN on another link.
type VLAN struct {
	Link string // the name of a physical link or bond
	ID   int    // 1 to 4094
}

// NetworkFiles writes the .link, .netdev and .network files (systemd 249 or
// newer) that give a Machine its links: physical ones are found by their
// permanent MAC and renamed. Files are sorted by path.
//
// A bond member may have a Link too, which then only gives it a name.
func NetworkFiles(links []Link) ([]File, error) {
	plan, err := newPlan(links)
	if err != nil {
		return nil, err
	}
	var files []File
	for _, l := range plan.links {
		switch {
		case l.Bond != nil:
			files = append(files,
				unitFile("10-"+l.Name+".netdev", plan.bondDevice(l)),
				unitFile("10-"+l.Name+".network", plan.network(l)),
				unitFile("11-"+l.Name+".network", bondMembers(l)))
		case l.VLAN != nil:
			files = append(files,
				unitFile("10-"+l.Name+".netdev", plan.vlanDevice(l)),
				unitFile("10-"+l.Name+".network", plan.network(l)))
		default:
			files = append(files, unitFile("10-"+l.Name+".link", plan.rename(l)))
			if plan.bondOf[l.MAC] == "" {
				files = append(files, unitFile("10-"+l.Name+".network", plan.network(l)))
			}
		}
	}
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return files, nil
}

func unitFile(name string, contents *ini) File {
	return File{Path: networkDir + name, Mode: 0o644, Contents: contents.Bytes()}
}

// plan is a validated set of links.
type plan struct {
	links  []Link              // MACs in canonical form
	byName map[string]*Link    // into links
	bondOf map[string]string   // member MAC → bond
	vlans  map[string][]string // link → names of the VLANs on it, sorted
}

func newPlan(links []Link) (*plan, error) {
	p := &plan{byName: map[string]*Link{}, bondOf: map[string]string{}, vlans: map[string][]string{}}
	var errs []error
	for _, l := range links {
		checked, err := checkLink(l)
		if err != nil {
			errs = append(errs, fmt.Errorf("link %q: %w", l.Name, err))
		}
		p.links = append(p.links, checked)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := p.connect(); err != nil {
		return nil, err
	}
	return p, p.checkMTUs()
}

// connect checks the relations between links.
func (p *plan) connect() error {
	macs := map[string]string{}
	addresses := map[netip.Addr]string{}
	for i := range p.links {
		l := &p.links[i]
		if p.byName[l.Name] != nil {
			return fmt.Errorf("two links are named %q", l.Name)
		}
		p.byName[l.Name] = l
		if other, taken := macs[l.MAC]; taken && l.MAC != "" {
			return fmt.Errorf("links %q and %q have the same MAC %s", other, l.Name, l.MAC)
		}
		macs[l.MAC] = l.Name
		for _, a := range l.Addresses {
			if other, taken := addresses[a.Addr()]; taken {
				return fmt.Errorf("links %q and %q have the same address %s", other, l.Name, a.Addr())
			}
			addresses[a.Addr()] = l.Name
		}
		if l.Bond == nil {
			continue
		}
		for _, mac := range l.Bond.Members {
			if other := p.bondOf[mac]; other != "" {
				return fmt.Errorf("link %q: member %s is already in bond %q", l.Name, mac, other)
			}
			p.bondOf[mac] = l.Name
		}
	}
	for _, l := range p.links {
		if bond := p.bondOf[l.MAC]; l.MAC != "" && bond != "" && l.configured() {
			return fmt.Errorf("link %q is a member of bond %q: move its addresses, DHCP and MTU to the bond", l.Name, bond)
		}
		if err := p.connectVLAN(l); err != nil {
			return fmt.Errorf("link %q: %w", l.Name, err)
		}
	}
	for _, names := range p.vlans {
		slices.Sort(names)
	}
	return nil
}

func (p *plan) connectVLAN(l Link) error {
	if l.VLAN == nil {
		return nil
	}
	base := p.byName[l.VLAN.Link]
	switch {
	case base == nil:
		return fmt.Errorf("its VLAN is on link %q, which the machine does not have", l.VLAN.Link)
	case base.VLAN != nil:
		return fmt.Errorf("its VLAN is on link %q, which is a VLAN itself: put it on a physical link or a bond", l.VLAN.Link)
	case base.MAC != "" && p.bondOf[base.MAC] != "":
		return fmt.Errorf("its VLAN is on link %q, which is a member of bond %q: put it on the bond", base.Name, p.bondOf[base.MAC])
	}
	for _, other := range p.vlans[base.Name] {
		if p.byName[other].VLAN.ID == l.VLAN.ID {
			return fmt.Errorf("VLAN %d on link %q is already link %q", l.VLAN.ID, base.Name, other)
		}
	}
	p.vlans[base.Name] = append(p.vlans[base.Name], l.Name)
	return nil
}

func (p *plan) checkMTUs() error {
	for _, l := range p.links {
		if l.VLAN == nil {
			continue
		}
		if base := p.byName[l.VLAN.Link]; base.MTU != 0 && l.MTU > base.MTU {
			return fmt.Errorf("link %q: its MTU %d does not fit through link %q with MTU %d", l.Name, l.MTU, base.Name, base.MTU)
		}
	}
	return nil
}

// mtu returns what a link needs: its own MTU, else the largest of its VLANs.
func (p *plan) mtu(l Link) int {
	if l.MTU != 0 {
		return l.MTU
	}
	largest := 0
	for _, name := range p.vlans[l.Name] {
		largest = max(largest, p.byName[name].MTU)
	}
	return largest
}

// configured reports whether the link carries more than other links.
func (l Link) configured() bool { return l.addressed() || l.MTU != 0 }

func (l Link) addressed() bool { return l.DHCP || len(l.Addresses) > 0 }

func (p *plan) rename(l Link) *ini {
	f := new(ini)
	matchPhysical(f, l.MAC)
	f.section("Link")
	f.set("Name", l.Name)
	return f
}

// matchPhysical matches by the permanent MAC: a bond sets the current MAC of
// its members, and a VLAN inherits that of its link.
func matchPhysical(f *ini, macs ...string) {
	f.section("Match")
	f.set("PermanentMACAddress", strings.Join(macs, " "))
}

func (p *plan) bondDevice(l Link) *ini {
	f := new(ini)
	f.section("NetDev")
	f.set("Name", l.Name)
	f.set("Kind", "bond")
	// Otherwise networkd derives a MAC from the machine id, which changes with
	// every live boot, and the DHCP lease with it.
	f.set("MACAddress", l.Bond.Members[0])
	f.setInt("MTUBytes", p.mtu(l))
	f.section("Bond")
	f.set("Mode", l.Bond.Mode)
	// The kernel's default, 0, never detects a dead member.
	f.set("MIIMonitorSec", "100ms")
	switch l.Bond.Mode {
	case "802.3ad":
		f.set("LACPTransmitRate", "fast") // detects a dead partner in 3 s, not 90
		f.set("TransmitHashPolicy", "layer3+4")
	case "balance-xor":
		f.set("TransmitHashPolicy", "layer3+4")
	}
	return f
}

func bondMembers(l Link) *ini {
	f := new(ini)
	matchPhysical(f, l.Bond.Members...)
	f.section("Link")
	f.set("RequiredForOnline", "no") // the bond is what counts
	f.section("Network")
	f.set("Bond", l.Name)
	return f
}

func (p *plan) vlanDevice(l Link) *ini {
	f := new(ini)
	f.section("NetDev")
	f.set("Name", l.Name)
	f.set("Kind", "vlan")
	f.setInt("MTUBytes", l.MTU)
	f.section("VLAN")
	f.setInt("Id", l.VLAN.ID)
	return f
}

func (p *plan) network(l Link) *ini {
	f := new(ini)
	if l.MAC != "" {
		// Not matched by name: kernels before 6.2 refuse to rename a link that
		// the initrd left up, and the machine must get its addresses all the
		// same.
		matchPhysical(f, l.MAC)
	} else {
		f.section("Match")
		f.set("Name", l.Name)
	}
	f.section("Link")
	f.setInt("MTUBytes", p.mtu(l))
	if !l.addressed() {
		f.set("RequiredForOnline", "no")
	}

	f.section("Network")
	f.set("DHCP", yesNo(l.DHCP))
	if !l.addressed() {
		f.set("LinkLocalAddressing", "no")
	}
	f.set("IPv6AcceptRA", yesNo(l.DHCP))
	for _, a := range l.Addresses {
		f.set("Address", a.String())
	}
	for _, a := range l.DNS {
		f.set("DNS", a.String())
	}
	f.set("Domains", strings.Join(l.Domains, " "))
	f.set("NTP", strings.Join(l.NTP, " "))
	for _, vlan := range p.vlans[l.Name] {
		f.set("VLAN", vlan)
	}

	if l.DHCP {
		f.section("DHCPv4")
		f.set("ClientIdentifier", "mac") // bootd identifies Machines by MAC
	}
	for _, gateway := range l.Gateways {
		f.section("Route")
		f.set("Gateway", gateway.String())
		if !within(gateway, l.Addresses) {
			f.set("GatewayOnLink", "yes")
		}
	}
	return f
}

func within(a netip.Addr, prefixes []netip.Prefix) bool {
	return a.IsLinkLocalUnicast() || slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// checkLink checks a link by itself and normalises its MACs.
func checkLink(l Link) (Link, error) {
	if !regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]{0,14}$`).MatchString(l.Name) || l.Name == "lo" || l.Name == "all" || l.Name == "default" {
		return l, errors.New("invalid interface name: use at most 15 letters, digits, '-', '_' and '.', a letter first")
	}
	var err error
	switch {
	case l.MAC != "" && l.Bond == nil && l.VLAN == nil:
		l.MAC, err = canonicalMAC(l.MAC)
	case l.MAC == "" && l.Bond != nil && l.VLAN == nil:
		l.Bond, err = checkBond(*l.Bond)
	case l.MAC == "" && l.Bond == nil && l.VLAN != nil:
		if l.VLAN.ID < 1 || l.VLAN.ID > 4094 {
			err = fmt.Errorf("invalid VLAN id %d: want 1 to 4094", l.VLAN.ID)
		}
	default:
		err = errors.New("give exactly one of mac, bond and vlan")
	}
	if err != nil {
		return l, err
	}
	return l, checkAddressing(l)
}

func checkBond(b Bond) (*Bond, error) {
	modes := []string{"802.3ad", "active-backup", "balance-alb", "balance-rr", "balance-tlb", "balance-xor", "broadcast"}
	if !slices.Contains(modes, b.Mode) {
		return nil, fmt.Errorf("invalid bond mode %q: want one of %s", b.Mode, strings.Join(modes, ", "))
	}
	if len(b.Members) == 0 {
		return nil, errors.New("the bond has no members: give their MACs")
	}
	members := make([]string, 0, len(b.Members))
	for _, m := range b.Members {
		mac, err := canonicalMAC(m)
		if err != nil {
			return nil, fmt.Errorf("bond member: %w", err)
		}
		if slices.Contains(members, mac) {
			return nil, fmt.Errorf("bond member %s is listed twice", mac)
		}
		members = append(members, mac)
	}
	return &Bond{Mode: b.Mode, Members: members}, nil
}

func canonicalMAC(text string) (string, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 {
		return "", fmt.Errorf("invalid MAC %q: want one such as 52:54:00:01:07:00", text)
	}
	if mac[0]&1 == 1 || bytes.Equal(mac, make([]byte, 6)) {
		return "", fmt.Errorf("invalid MAC %s: it is a group address or all zeros", mac)
	}
	return mac.String(), nil
}

func checkAddressing(l Link) error {
	if l.MTU != 0 && (l.MTU < 576 || l.MTU > 65535) {
		return fmt.Errorf("invalid MTU %d: want 576 to 65535 bytes", l.MTU)
	}
	for _, a := range l.Addresses {
		if !a.IsValid() || !usable(a.Addr()) {
			return fmt.Errorf("invalid address %s: want a unicast address", a)
		}
		if a.Addr().Is6() && l.MTU != 0 && l.MTU < 1280 {
			return fmt.Errorf("invalid MTU %d: IPv6 needs at least 1280 bytes", l.MTU)
		}
	}
	families := map[bool]bool{}
	for _, g := range l.Gateways {
		if !usable(g) {
			return fmt.Errorf("invalid gateway %s: want a unicast address", g)
		}
		if families[g.Is4()] {
			return fmt.Errorf("gateway %s is the second of its family: give only one", g)
		}
		families[g.Is4()] = true
		sameFamily := func(a netip.Prefix) bool { return a.Addr().Is4() == g.Is4() }
		if !slices.ContainsFunc(l.Addresses, sameFamily) {
			return fmt.Errorf("gateway %s needs an address of its family on the link", g)
		}
	}
	for _, d := range l.DNS {
		if !usable(d) {
			return fmt.Errorf("invalid DNS server %s: want an address", d)
		}
	}
	word := regexp.MustCompile(`^[A-Za-z0-9_.:-]+$`)
	for _, name := range slices.Concat(l.NTP, l.Domains) {
		if !word.MatchString(name) {
			return fmt.Errorf("invalid %q: want a host name or an address", name)
		}
	}
	return nil
}

func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.Is4In6() && a.Zone() == ""
}

// ini writes systemd's format and omits empty sections.
type ini struct {
	bytes.Buffer
	pending string
}

func (f *ini) section(name string) { f.pending = name }

func (f *ini) set(key, value string) {
	if value == "" {
		return
	}
	if f.pending != "" {
		if f.Len() > 0 {
			f.WriteByte('\n')
		}
		f.WriteString("[" + f.pending + "]\n")
		f.pending = ""
	}
	f.WriteString(key + "=" + value + "\n")
}

func (f *ini) setInt(key string, value int) {
	if value != 0 {
		f.set(key, fmt.Sprint(value))
	}
}
