package show

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

// Printer shows objects as they stand at a moment, with the colours of a terminal.
type Printer struct {
	Paint func(terminal.Colour, string) string
	Now   time.Time
}

// column is one property of an object.
type column struct {
	title string
	wide  bool // with -o wide only
	value func(api.Object) string
}

func of[T api.Object](title string, value func(T) string) column {
	return column{title: title, value: func(o api.Object) string { return value(o.(T)) }}
}

func wide(c column) column {
	c.wide = true
	return c
}

// Header is the titles of a kind's columns.
func (p Printer) Header(k api.Kind, wide bool) []string {
	var titles []string
	for _, c := range p.columns(k, wide) {
		titles = append(titles, c.title)
	}
	return titles
}

// Row is an object's cells under Header. What is not known is a dash.
func (p Printer) Row(o api.Object, wide bool) []string {
	var cells []string
	for _, c := range p.columns(api.KindOf(o), wide) {
		cells = append(cells, orDash(terminal.Columns, c.value(o)))
	}
	return cells
}

func orDash(columns func(string) int, cell string) string {
	if columns(cell) == 0 {
		return "-"
	}
	return cell
}

func (p Printer) columns(k api.Kind, all bool) []column {
	list := []column{{title: "NAME", value: func(o api.Object) string { return o.Meta().Name }}}
	list = append(list, p.ofKind(k)...)
	list = append(list, column{title: "AGE", value: func(o api.Object) string { return p.Age(o.Meta().CreationTimestamp) }})
	if all {
		list = append(list, column{title: "LABELS", value: labels})
		return list
	}
	return slices.DeleteFunc(list, func(c column) bool { return c.wide })
}

func (p Printer) ofKind(k api.Kind) []column {
	switch k.Name {
	case "Site":
		return p.site()
	case "Secret":
		return []column{of("KEYS", func(s *api.Secret) string { return strings.Join(slices.Sorted(maps.Keys(s.Status.Digests)), ",") })}
	case "Zone":
		return p.zone()
	case "Subnet":
		return p.subnet()
	case "Image":
		return p.image()
	case "Layer":
		return []column{of("LINES", func(l *api.Layer) string { return strconv.Itoa(strings.Count(l.Spec.Butane, "\n")) }),
			p.condition("READY", api.CondReady, func(o api.Object) api.Conditions { return o.(*api.Layer).Status.Conditions })}
	case "Profile":
		return p.profile()
	case "Machine":
		return p.machine()
	case "Network":
		return p.network()
	case "Guest":
		return p.guest()
	case "HostSpec":
		return p.hostSpec()
	}
	return nil
}

func (p Printer) site() []column {
	return []column{
		of("DOMAIN", func(s *api.Site) string { return s.Spec.Domain }),
		of("TRUST", func(s *api.Site) string { return string(s.Spec.Trust.Minimum) }),
		of("PAUSED", func(s *api.Site) string {
			if s.Spec.Paused {
				return p.Paint(terminal.Yellow, "yes")
			}
			return "no"
		}),
		wide(of("EPOCH", func(s *api.Site) string { return strconv.FormatInt(s.Status.Epoch, 10) })),
		wide(of("NTP", func(s *api.Site) string { return join(s.Spec.NTP) })),
		wide(of("DNS", func(s *api.Site) string { return join(s.Spec.DNS) })),
	}
}

func (p Printer) zone() []column {
	return []column{
		of("ASN", func(z *api.Zone) string { return strconv.FormatUint(uint64(z.Spec.ASN), 10) }),
		of("PREFIXES", func(z *api.Zone) string { return join(z.Spec.Prefixes) }),
		of("REFLECTORS", reflectors),
		of("UPLINKS", func(z *api.Zone) string { return strconv.Itoa(len(z.Spec.Uplinks)) }),
		p.condition("READY", api.CondReady, func(o api.Object) api.Conditions { return o.(*api.Zone).Status.Conditions }),
	}
}

// reflectors are a Zone's, with the states of those that do not simply serve.
func reflectors(z *api.Zone) string {
	var list []string
	for _, r := range z.Status.Reflectors {
		if r.State != api.ReflectorServing {
			r.Machine += "(" + string(r.State) + ")"
		}
		list = append(list, r.Machine)
	}
	return strings.Join(list, ",")
}

func (p Printer) subnet() []column {
	return []column{
		of("PURPOSE", func(s *api.Subnet) string { return string(s.Spec.Purpose) }),
		of("ZONE", func(s *api.Subnet) string { return s.Spec.Zone }),
		of("PREFIXES", func(s *api.Subnet) string { return join(s.Spec.Prefixes) }),
		of("RANGE", func(s *api.Subnet) string { return text(s.Spec.Range) }),
		of("GATEWAY", func(s *api.Subnet) string { return address(s.Spec.Gateway) }),
		wide(of("INTERFACE", func(s *api.Subnet) string { return s.Spec.Interface })),
		wide(of("MODE", func(s *api.Subnet) string { return string(s.Spec.Mode) })),
		wide(of("MTU", func(s *api.Subnet) string { return strconv.Itoa(s.Spec.MTU) })),
	}
}

func (p Printer) image() []column {
	return []column{
		of("VERSION", func(i *api.Image) string { return i.Spec.Version }),
		of("OS", func(i *api.Image) string { return i.Spec.OS }),
		of("ARCH", func(i *api.Image) string { return i.Spec.Arch }),
		of("FILES", func(i *api.Image) string { return strings.Join(slices.Sorted(maps.Keys(i.Spec.Files)), ",") }),
		of("SIZE", func(i *api.Image) string {
			var sum int64
			for _, f := range i.Status.Files {
				sum += f.Size
			}
			if sum == 0 {
				return ""
			}
			return terminal.Size(sum)
		}),
		p.condition("READY", api.CondReady, func(o api.Object) api.Conditions { return o.(*api.Image).Status.Conditions }),
		wide(of("IGNITION", func(i *api.Image) string { return i.Spec.IgnitionVersion })),
	}
}

func (p Printer) profile() []column {
	return []column{
		of("IMAGE", func(x *api.Profile) string { return x.Spec.Image }),
		of("LAYERS", func(x *api.Profile) string { return strings.Join(x.Spec.Layers, ",") }),
		of("BOOTS", func(x *api.Profile) string {
			if x.Spec.Install == nil {
				return "live"
			}
			return "from disk"
		}),
		wide(of("ARGUMENTS", func(x *api.Profile) string { return strings.Join(x.Spec.KernelArguments, " ") })),
	}
}

func (p Printer) machine() []column {
	return []column{
		of("ZONE", func(m *api.Machine) string { return m.Spec.Zone }),
		of("RACK/U", rackUnit),
		of("PHASE", func(m *api.Machine) string { return p.Phase(m.Status.Phase) }),
		of("STAGE", func(m *api.Machine) string { return p.Stage(m) }),
		of("POWER", func(m *api.Machine) string { return p.power(m.Status.Power) }),
		of("ADDRESS", Address),
		wide(of("BMC", func(m *api.Machine) string {
			if m.Spec.BMC == nil {
				return ""
			}
			return strings.TrimPrefix(m.Spec.BMC.Address, "https://")
		})),
		wide(of("PROFILE", func(m *api.Machine) string { return m.Spec.Profile })),
		wide(of("MODEL", func(m *api.Machine) string {
			if i := m.Status.Inventory; i != nil {
				return strings.TrimSpace(i.Manufacturer + " " + i.Model)
			}
			return ""
		})),
		wide(of("SERIAL", func(m *api.Machine) string {
			if i := m.Status.Inventory; i != nil {
				return i.Serial
			}
			return ""
		})),
		wide(of("AGENT", func(m *api.Machine) string { return p.agent(m.Status.Host) })),
		wide(of("KERNEL", func(m *api.Machine) string {
			if h := m.Status.Host; h != nil {
				return h.Kernel
			}
			return ""
		})),
	}
}

func (p Printer) network() []column {
	return []column{
		of("ZONE", func(n *api.Network) string { return n.Spec.Zone }),
		of("CIDRS", func(n *api.Network) string { return join(n.Spec.CIDRs) }),
		of("VNI", func(n *api.Network) string { return number(int64(n.Status.VNI)) }),
		of("LEASES", func(n *api.Network) string { return strconv.Itoa(n.Status.Leases) }),
		of("EGRESS", func(n *api.Network) string { return n.Spec.Egress }),
	}
}

func (p Printer) guest() []column {
	return []column{
		of("NETWORK", func(g *api.Guest) string { return g.Spec.Network }),
		of("CPUS", func(g *api.Guest) string { return strconv.Itoa(g.Spec.CPUs) }),
		of("MEMORY", func(g *api.Guest) string { return text(g.Spec.Memory) }),
		of("IMAGE", func(g *api.Guest) string { return g.Spec.Image }),
		of("STATE", func(g *api.Guest) string { return fmt.Sprint(g.Spec.State) }),
	}
}

func (p Printer) hostSpec() []column {
	return []column{
		of("EPOCH", func(h *api.HostSpec) string { return strconv.FormatInt(h.Epoch, 10) }),
		of("REVISION", func(h *api.HostSpec) string { return strconv.FormatInt(h.Revision, 10) }),
		of("PARTS", func(h *api.HostSpec) string { return strings.Join(slices.Sorted(maps.Keys(h.Parts)), ",") }),
		of("TOMBSTONES", func(h *api.HostSpec) string { return strconv.Itoa(len(h.Tombstones)) }),
	}
}

func (p Printer) condition(title, typ string, from func(api.Object) api.Conditions) column {
	return column{title: title, value: func(o api.Object) string {
		c := from(o).Get(typ)
		if c == nil {
			return ""
		}
		if c.Status == api.True {
			return p.Paint(terminal.Green, "yes")
		}
		return p.Paint(terminal.Red, "no: "+c.Reason)
	}}
}

// Age is how long ago something was.
func (p Printer) Age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return terminal.Short(p.Now.Sub(t).Truncate(time.Second))
}

// Phase is a phase in the colour of how it is going.
func (p Printer) Phase(phase api.Phase) string {
	phase = api.Phase(terminal.Clean(string(phase)))
	colour := terminal.Plain
	switch phase {
	case api.PhaseActive:
		colour = terminal.Green
	case api.PhaseFailed:
		colour = terminal.Red
	case api.PhaseProvisioning, api.PhaseInspecting, api.PhaseDraining, api.PhaseDeprovisioning:
		colour = terminal.Cyan
	case api.PhaseDiscovered, api.PhaseMaintenance:
		colour = terminal.Yellow
	}
	return p.Paint(colour, string(phase))
}

// Stage is how far the BootAttempt under way is, or where the last one failed.
func (p Printer) Stage(m *api.Machine) string {
	a := m.Status.Attempt
	if a == nil || a.Result == api.ResultActive {
		return ""
	}
	return fmt.Sprintf("%s %d/%d", a.Stage, a.Stage.Index()+1, len(api.Stages()))
}

func (p Printer) power(power string) string {
	if power == "On" {
		return p.Paint(terminal.Green, power)
	}
	return power
}

func (p Printer) agent(h *api.HostStatus) string {
	if h == nil {
		return ""
	}
	if !h.Connected {
		return p.Paint(terminal.Yellow, h.AgentVersion+" (away)")
	}
	return h.AgentVersion
}

func rackUnit(m *api.Machine) string {
	l := m.Spec.Location
	if l.Rack == "" && l.Unit == 0 {
		return ""
	}
	return l.Rack + "/" + number(int64(l.Unit))
}

// Address is where a Machine is reached: the address of a link that the host has up and that the spec pins,
// else the lease that it boots with.
func Address(m *api.Machine) string {
	if m.Status.Host == nil {
		return join(m.Status.Addresses)
	}
	pinned := map[netip.Addr]bool{}
	for _, l := range m.Spec.Links {
		for _, a := range l.Addresses {
			pinned[a] = true
		}
	}
	var found []netip.Addr
	for _, nic := range m.Status.Host.NICs {
		for _, prefix := range nic.Addresses {
			if pinned[prefix.Addr()] {
				found = append(found, prefix.Addr())
			}
		}
	}
	if len(found) == 0 {
		return join(m.Status.Addresses)
	}
	return join(found)
}

func labels(o api.Object) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(o.Meta().Labels)) {
		list = append(list, k+"="+o.Meta().Labels[k])
	}
	return strings.Join(list, ",")
}

func join[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i := range list {
		words[i] = list[i].String()
	}
	return strings.Join(words, ",")
}

func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func text(v interface{ MarshalText() ([]byte, error) }) string {
	raw, err := v.MarshalText()
	if err != nil {
		return ""
	}
	return string(raw)
}
