package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/manifest"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/show"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
	"github.com/rackweft/rackweft/internal/text"
)

// showCommands show the details of an object.
type showCommands struct{ *app }

func (a *showCommands) describeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "describe KIND NAME… | KIND/NAME…",
		Short: "Show objects in full, in sections",
		Example: `  weftctl describe machine r1u07
  weftctl describe image/debian-12`,
		Args:              atLeast(1, "KIND NAME, such as machine r1u07"),
		ValidArgsFunction: a.completeObjects,
		RunE: func(c *cobra.Command, args []string) error {
			targets, err := parseTargets(args, false)
			if err != nil {
				return err
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			first := true
			for _, t := range targets {
				objects, err := fetch(c.Context(), client, t)
				if err != nil {
					return err
				}
				for _, o := range objects {
					if !first {
						_ = a.printf("\n\n")
					}
					first = false
					if err := a.describe(c.Context(), client, o); err != nil {
						return err
					}
				}
			}
			return nil
		},
	}
}

func (a *showCommands) describe(ctx context.Context, client *api.Client, o api.Object) error {
	k, m := api.KindOf(o), o.Meta()
	p := a.printer()
	section := sectioner(a.out)
	_ = a.printf("%s  %s\n", a.bold(title(k, m.Name)), p.Phase(phaseOf(o)))
	a.pairs([][2]string{
		{"uid", m.UID}, {"created", since(p, o)}, {"generation", fmt.Sprint(m.Generation)}, {"labels", keyValues(m.Labels)},
		{"annotations", keyValues(m.Annotations)}, {"finalizers", strings.Join(m.Finalizers, ", ")}, {"deleted", deletion(m)},
	})
	if err := a.describeSpec(o, section); err != nil {
		return err
	}
	if machine, ok := o.(*api.Machine); ok {
		a.describeMachine(machine, section)
	}
	if conditions := api.ConditionsOf(o); len(conditions) > 0 {
		section("Conditions")
		if err := p.Conditions(a.out, conditions); err != nil {
			return err
		}
	}
	return a.describeEvents(ctx, client, k, m.Name, section)
}

func since(p show.Printer, o api.Object) string {
	t := o.Meta().CreationTimestamp
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s, %s ago", t.Local().Format("2006-01-02 15:04:05"), p.Age(t))
}

func ago(p show.Printer, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return p.Age(t) + " ago"
}

func deletion(m *api.Metadata) string {
	if m.DeletionTimestamp == nil {
		return ""
	}
	return "since " + m.DeletionTimestamp.Local().Format("2006-01-02 15:04:05") + ", the finalizers are running"
}

func keyValues(m map[string]string) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		list = append(list, k+"="+m[k])
	}
	return strings.Join(list, ", ")
}

// pairs prints the values that are not empty, aligned.
func (a *app) pairs(list [][2]string) {
	width := 0
	for _, p := range list {
		if p[1] != "" {
			width = max(width, len(p[0]))
		}
	}
	for _, p := range list {
		if p[1] != "" {
			_ = a.printf("  %-*s  %s\n", width, p[0], terminal.Clean(p[1]))
		}
	}
}

// describeSpec prints the spec as the YAML that a person would write, the status of kinds without sections of
// their own, and what a compiled kind has instead.
func (a *showCommands) describeSpec(o api.Object, section func(string)) error {
	raw, err := api.Encode(o)
	if err != nil {
		return err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return fmt.Errorf("read %s back: %w", o.Meta().Name, err)
	}
	if _, machine := o.(*api.Machine); machine {
		delete(all, "status")
	}
	for _, name := range []string{"spec", "epoch", "revision", "parts", "tombstones", "status"} {
		value, there := all[name]
		if name == "status" && there {
			value, there = withoutConditions(value)
		}
		if !there {
			continue
		}
		text, err := manifest.YAML(value)
		if err != nil {
			return err
		}
		section(strings.ToUpper(name[:1]) + name[1:])
		for line := range strings.Lines(string(text)) {
			_ = a.printf("  %s", line)
		}
	}
	return nil
}

// withoutConditions is a status without its conditions, which have a table of their own; false when nothing is left.
func withoutConditions(status json.RawMessage) (json.RawMessage, bool) {
	var all map[string]json.RawMessage
	if json.Unmarshal(status, &all) != nil {
		return status, true
	}
	delete(all, "conditions")
	rest, err := json.Marshal(all)
	return rest, err == nil && len(all) > 0
}

func (a *showCommands) describeMachine(m *api.Machine, section func(string)) {
	p := a.printer()
	s, pins := m.Status, m.BMCPins()
	section("Status")
	a.pairs([][2]string{{"phase", string(s.Phase)}, {"power", s.Power}, {"address", show.Address(m)},
		{"bmc certificate", strings.TrimSpace(string(pins.Certificate) + "  " + pinnedBy(pins))}, {"bmc host key", string(pins.HostKey)},
		{"bmc last answered", ago(p, s.BMC.LastContact)}, {"last seen", ago(p, s.LastSeen)}})
	if i := s.Inventory; i != nil {
		section("Inventory")
		a.inventory(i)
	}
	if h := s.Host; h != nil {
		section("Host")
		a.host(h)
	}
	if s.Attempt != nil {
		section("BootAttempt")
		_ = p.Attempt(a.out, s.Attempt)
	}
	if len(s.Requests) > 0 {
		section("Requests")
		table := show.Table{Header: []string{"  AGE", "VERB", "BY", "STATE", "MESSAGE"}}
		for _, r := range s.Requests {
			table.Rows = append(table.Rows, []string{"  " + p.Age(r.Time), strings.TrimSpace(string(r.Verb) + " " + r.Argument), r.By, r.State, terminal.Clean(r.Message)})
		}
		_ = table.Print(a.out, a.bold)
	}
}

func (a *showCommands) inventory(i *api.Inventory) {
	list := [][2]string{
		{"model", strings.TrimSpace(i.Manufacturer + " " + i.Model)}, {"serial", i.Serial}, {"sku", i.SKU}, {"uuid", i.UUID},
		{"firmware", i.BIOSVersion}, {"bmc firmware", i.BMCFirmware},
		{"processors", fmt.Sprintf("%d × %s, %d cores in total", i.CPUs.Count, i.CPUs.Model, i.CPUs.Cores)},
		{"memory", text.Size(i.MemoryMiB << 20)},
	}
	for _, d := range i.DIMMs {
		list = append(list, [2]string{"dimm", words(d.Slot, text.Size(d.MiB<<20), d.Type, d.Part, d.Serial, d.Health)})
	}
	for _, g := range i.GPUs {
		list = append(list, [2]string{"gpu", words(g.Name, g.Model, g.Serial, g.Health)})
	}
	for _, n := range i.NICs {
		list = append(list, [2]string{"nic", words(n.Name, string(n.MAC), n.Model, n.Link)})
	}
	for _, d := range i.Disks {
		list = append(list, [2]string{"disk", words(d.Name, d.Model, d.Serial, d.Type, text.Size(d.Bytes), d.Health)})
	}
	for _, p := range i.PSUs {
		list = append(list, [2]string{"psu", words(p.Name, p.Model, p.Serial, watts(p.Watts), p.Health)})
	}
	for _, f := range i.Firmware {
		list = append(list, [2]string{"firmware of", words(f.Name, f.Version)})
	}
	for _, text := range i.Incomplete {
		list = append(list, [2]string{"not reported", text})
	}
	list = append(list, [2]string{"read", ago(a.printer(), i.Read)})
	a.pairs(list)
}

// words are the conditions' words that are shown.
func words(all ...string) string {
	return strings.Join(slices.DeleteFunc(all, func(s string) bool { return s == "" }), " ")
}

func watts(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d W", n)
}

func (a *showCommands) host(h *api.HostStatus) {
	p := a.printer()
	connected := strings.TrimSuffix("no, last seen "+ago(p, h.LastHeartbeat), ", last seen ")
	if h.Connected {
		connected = "yes"
	}
	list := [][2]string{{"connected", connected}, {"agent", h.AgentVersion}, {"os", h.OS}, {"kernel", h.Kernel},
		{"hostspec", fmt.Sprintf("epoch %d, revision %d", h.Epoch, h.Revision)}}
	for _, n := range h.NICs {
		var addresses []string
		for _, prefix := range n.Addresses {
			addresses = append(addresses, prefix.String())
		}
		list = append(list, [2]string{"nic", strings.TrimSpace(fmt.Sprintf("%s %s %s", n.Name, n.MAC, strings.Join(addresses, ", ")))})
	}
	for _, name := range slices.Sorted(maps.Keys(h.Parts)) {
		part := h.Parts[name]
		list = append(list, [2]string{"part", strings.TrimSpace(fmt.Sprintf("%s %s %s", name, part.State, part.Message))})
	}
	a.pairs(list)
}

func (a *showCommands) describeEvents(ctx context.Context, client *api.Client, k api.Kind, name string, section func(string)) error {
	var events []api.Event
	err := client.Events(ctx, k.Name, name, false, func(e api.Event) error {
		events = append(events, e)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	if len(events) == 0 {
		return nil
	}
	events = tail(events, 10)
	section("Events, the last " + fmt.Sprint(len(events)))
	return a.printer().Events(a.out, events, false)
}
