package show

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

// clock formats the time of a record.
func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// Attempt prints a BootAttempt with the time that each stage took.
func (p Printer) Attempt(w io.Writer, a *api.BootAttempt) error {
	state := "under way"
	switch a.Result {
	case api.ResultActive:
		state = p.Paint(terminal.Green, "Active") + " after " + terminal.Short(a.Finished.Sub(a.Started))
	case api.ResultFailed:
		state = p.Paint(terminal.Red, "Failed") + " at " + string(a.Stage)
	case api.ResultAborted:
		state = "Aborted at " + string(a.Stage)
	default:
		state += ", until " + clock(a.Deadline) + " unless it makes progress"
	}
	if _, err := fmt.Fprintf(w, "  number %d, %s; opened %s: %s\n", a.Number, state, clock(a.Started), terminal.Clean(a.Reason)); err != nil {
		return err
	}
	if a.Message != "" {
		if _, err := fmt.Fprintf(w, "  %s\n", terminal.Clean(a.Message)); err != nil {
			return err
		}
	}
	table := Table{Header: []string{"  STAGE", "AFTER", "TOOK"}}
	before := a.Started
	for _, s := range a.Stages {
		table.Rows = append(table.Rows, []string{"  " + string(s.Stage), terminal.Short(s.Time.Sub(a.Started)), terminal.Short(s.Time.Sub(before))})
		before = s.Time
	}
	return table.Print(w, p.bold)
}

// Decisions prints bootd's decisions about a Machine.
func (p Printer) Decisions(w io.Writer, list []api.Decision) error {
	table := Table{Header: []string{"  TIME", "QUESTION", "ANSWER", "WHY"}}
	for _, d := range list {
		why := d.Reason
		if d.Peer != "" {
			why += " [" + d.Peer + "]"
		}
		table.Rows = append(table.Rows, []string{"  " + clock(d.Time), d.Question, terminal.Clean(d.Answer), terminal.Clean(why)})
	}
	return table.Print(w, p.bold)
}

// Events prints events, with the object of each where it is not obvious.
func (p Printer) Events(w io.Writer, list []api.Event, objects bool) error {
	table := Table{Header: []string{"  TIME", "REASON", "MESSAGE"}}
	if objects {
		table.Header = []string{"  TIME", "OBJECT", "REASON", "MESSAGE"}
	}
	for _, e := range list {
		row := []string{"  " + clock(e.Time), p.reason(e), terminal.Clean(e.Message)}
		if objects {
			row = []string{row[0], Object(e), row[1], row[2]}
		}
		table.Rows = append(table.Rows, row)
	}
	return table.Print(w, p.bold)
}

// Event is one event on a line.
func (p Printer) Event(e api.Event) string {
	reason := p.reason(e) + strings.Repeat(" ", max(0, 14-terminal.Columns(e.Reason)))
	return fmt.Sprintf("%s  %-16s  %s  %s", clock(e.Time), Object(e), reason, terminal.Clean(e.Message))
}

// Object is kind/name of an event's object.
func Object(e api.Event) string { return strings.ToLower(e.Kind) + "/" + e.Name }

func (p Printer) reason(e api.Event) string {
	if e.Type == api.Warning {
		return p.Paint(terminal.Yellow, e.Reason)
	}
	return e.Reason
}

// Origins prints which Layer each part of a config comes from.
func (p Printer) Origins(w io.Writer, list []api.Origin) error {
	table := Table{Header: []string{"  PART", "LAYER", "INSTEAD OF"}}
	for _, o := range list {
		table.Rows = append(table.Rows, []string{"  " + terminal.Clean(o.Path), o.Layer, strings.Join(o.Overrides, ", ")})
	}
	return table.Print(w, p.bold)
}

// Snapshots prints a Guest's snapshots.
func (p Printer) Snapshots(w io.Writer, list []api.GuestSnapshot) error {
	table := Table{Header: []string{"NAME", "TIME", "CONSISTENCY", "DISKS"}}
	for _, s := range list {
		worth := string(s.Consistency)
		if s.Broken {
			worth = p.Paint(terminal.Yellow, "Broken")
		}
		table.Rows = append(table.Rows, []string{s.Name, clock(s.Time), worth, strings.Join(s.Disks, ", ")})
	}
	return table.Print(w, p.bold)
}

// Peers prints the leases of a Network; wide prints all columns.
func (p Printer) Peers(w io.Writer, list []api.NetworkMember, wide bool) error {
	table := Table{Header: []string{"HOST", "LEASE", "VTEP", "STATE", "MESSAGE"}}
	if wide {
		table.Header = []string{"HOST", "KIND", "LEASE", "IPV6 LEASE", "VTEP", "MAC", "AGENT", "STATE", "MESSAGE"}
	}
	for _, m := range list {
		host, state := m.Host, string(m.State)
		switch m.Kind {
		case api.MemberGuest:
			host += " (guest " + m.Guest + ")"
		case api.MemberFlanneld, api.MemberReservation:
			host = strings.TrimSpace(host + " (" + string(m.Kind) + ")")
		}
		if m.State == api.PartFailed || m.State == api.PartPending || m.State == api.PartOrphaned {
			state = p.Paint(terminal.Yellow, state)
		}
		row := []string{host, m.Lease.String(), address(m.VTEP), state, m.Message}
		if wide {
			agent := ""
			if m.Kind == api.MemberHost {
				agent = map[bool]string{true: "connected", false: "away"}[m.Connected]
			}
			row = []string{m.Host, strings.TrimSpace(string(m.Kind) + " " + m.Guest), m.Lease.String(), prefix(m.Lease6), address(m.VTEP), string(m.MAC), agent, state, m.Message}
		}
		for i := range row[:len(row)-1] {
			row[i] = orDash(terminal.Columns, row[i])
		}
		row[len(row)-1] = terminal.Clean(m.Message)
		table.Rows = append(table.Rows, row)
	}
	return table.Print(w, p.bold)
}

func prefix(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

// Conditions prints conditions; those in an unwanted state are coloured.
func (p Printer) Conditions(w io.Writer, list api.Conditions) error {
	table := Table{Header: []string{"  CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE"}}
	for _, c := range list {
		status := string(c.Status)
		if c.Status == api.False && c.Type != api.CondHeld || c.Status == api.True && c.Type == api.CondHeld {
			status = p.Paint(terminal.Yellow, status)
		}
		table.Rows = append(table.Rows, []string{"  " + c.Type, status, orDash(terminal.Columns, p.Age(c.Time)), c.Reason, terminal.Clean(c.Message)})
	}
	return table.Print(w, p.bold)
}

func (p Printer) bold(s string) string { return p.Paint(terminal.Bold, s) }
