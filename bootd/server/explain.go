package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
)

const (
	explainDecisions = 50
	explainEvents    = 30
	explainLines     = 15
)

// explain says why a Machine is in its current state. It may be named by a MAC, even by one that no Machine has.
func (h *machines) explain(c *call) error {
	if err := h.catchUpWithStore(c.r.Context()); err != nil {
		return err
	}
	m, mac, err := h.subject(c)
	if err != nil {
		return err
	}
	x := api.Explanation{}
	who := string(mac)
	if m != nil {
		who, x.Machine, x.Summary = m.Metadata.Name, m, summarize(m, site.Spec(h.cache), time.Now())
		x.Summary = append(x.Summary, trusted(m, machine.Required(h.cache, m))...)
		h.explainConfig(&x, m)
		if x.Events, err = newest(c.r.Context(), h.events, explainEvents, eventsOf("Machine", m.Metadata.Name)); err != nil {
			return err
		}
	}
	if m != nil && c.who.role >= operator && h.objects.reaches(c, m) == nil {
		x.Console = h.lines(m, explainLines)
	}
	if x.Decisions, err = newest(c.r.Context(), h.decisions, explainDecisions, h.journals.about(who)); err != nil {
		return err
	}
	if m == nil {
		x.Summary = unknownMAC(mac, x.Decisions)
	}
	return c.json(http.StatusOK, x)
}

// catchUpWithStore waits until the cache holds all writes up to now: MACs are looked up there.
func (h *machines) catchUpWithStore(ctx context.Context) error {
	site, err := api.LookupKind("Site")
	if err != nil {
		return err
	}
	_, revision, err := h.store.List(ctx, site)
	if err != nil {
		return err
	}
	return h.cache.WaitRevision(ctx, revision)
}

// subject finds the Machine in question; nil for a MAC that none has.
func (h *machines) subject(c *call) (*api.Machine, api.MAC, error) {
	name := c.name()
	mac, err := api.ParseMAC(name)
	if err == nil {
		m, ok := store.CachedMachineByMAC(h.cache, mac)
		if !ok {
			return nil, mac, nil
		}
		name = m.Metadata.Name
	}
	o, err := h.objects.read(c.r.Context(), machineKind(), name)
	if errors.Is(err, store.ErrNotFound) && mac != "" {
		return nil, mac, nil
	}
	if err != nil {
		return nil, "", err
	}
	return o.(*api.Machine), mac, nil
}

// explainConfig says where each part of the config comes from, or why it cannot
// be compiled.
func (h *machines) explainConfig(x *api.Explanation, m *api.Machine) {
	if machine.IsDiscovered(m) || m.Spec.Profile == "" {
		return
	}
	origins, warnings, err := h.decider.Origins(m)
	if err != nil {
		x.Summary = append(x.Summary, "Its config cannot be compiled: "+err.Error()+".")
		return
	}
	x.Origins = origins
	for _, w := range warnings {
		x.Summary = append(x.Summary, "Its config: "+w+".")
	}
}

func unknownMAC(mac api.MAC, decisions []api.Decision) []string {
	summary := []string{fmt.Sprintf("No Machine has MAC %s.", mac)}
	if len(decisions) == 0 {
		return append(summary, "No request from it is on record: check its cable, its VLAN, and that a Subnet serves it.")
	}
	last := decisions[len(decisions)-1]
	return append(summary,
		fmt.Sprintf("Its last request was at %s (%s), and the answer was: %s: %s.", clock(last.Time), last.Question, last.Answer, last.Reason),
		"Apply a Machine with this MAC to register it.")
}

// summarize says a Machine's progress, what it waits for and what to do.
func summarize(m *api.Machine, site api.SiteSpec, now time.Time) []string {
	if machine.IsDiscovered(m) {
		return []string{
			fmt.Sprintf("This Machine is not registered: bootd created it because MAC %v requested a boot.", m.MACs()),
			fmt.Sprintf("It was last seen %s, and receives an address and nothing else.", ago(m.Status.LastSeen, now)),
			"Apply a Machine with this MAC, under any name, to replace it.",
		}
	}
	summary := []string{standing(m)}
	if a := m.Status.Attempt; a != nil {
		summary = append(summary, attempt(a, now))
	}
	summary = append(summary, troubles(m)...)
	for _, r := range m.Status.Requests {
		if r.State == api.RequestPending || r.State == api.RequestRunning {
			summary = append(summary, fmt.Sprintf("%s %s, requested by %s %s, is %s.", r.Verb, r.Argument, r.By, ago(r.Time, now), r.State))
		}
	}
	if site.Paused {
		summary = append(summary, "The Site is paused: no power change and no BootAttempt begins until spec.paused of Site site is false.")
	}
	return append(summary, advice(m)...)
}

func standing(m *api.Machine) string {
	phase := m.Status.Phase
	if phase == "" {
		phase = api.PhaseRegistered
	}
	text := fmt.Sprintf("%s is %s", m.Metadata.Name, phase)
	if m.Status.Power != "" {
		text += ", powered " + m.Status.Power
	}
	return text + fmt.Sprintf("; its desired state is %s.", m.Spec.State)
}

func attempt(a *api.BootAttempt, now time.Time) string {
	head := fmt.Sprintf("BootAttempt %d (%s) began %s", a.Number, a.Reason, ago(a.Started, now))
	switch a.Result {
	case api.ResultActive:
		return fmt.Sprintf("%s and reached Active in %s.", head, a.Finished.Sub(a.Started).Round(time.Second))
	case api.ResultFailed:
		return fmt.Sprintf("%s and failed after stage %s: %s.", head, a.Stage, a.Message)
	case api.ResultAborted:
		return fmt.Sprintf("%s and was aborted after stage %s: %s.", head, a.Stage, a.Message)
	}
	left := a.Deadline.Sub(now).Round(time.Second)
	if left <= 0 {
		return fmt.Sprintf("%s, is at stage %s, and its window is over: it is about to fail.", head, a.Stage)
	}
	return fmt.Sprintf("%s and is at stage %s; it waits for %s, for another %s.", head, a.Stage, next(a.Stage), left)
}

// trusted says which trust level the Machine's last boot has reached, how, and which is required.
func trusted(m *api.Machine, r trust.Requirement) []string {
	a := m.Status.Attempt
	if a == nil || machine.IsDiscovered(m) {
		return nil
	}
	level, why := a.Trust, a.TrustWhy
	if level == "" {
		level = api.TrustMAC
	}
	if why != "" {
		why = ": " + why
	}
	lines := []string{fmt.Sprintf("BootAttempt %d has reached trust level %s%s; %s is required (by %s).", a.Number, level, why, r.Level, r.Of)}
	for _, t := range a.Takers {
		did := "took"
		if t.Second {
			did = "came second for, and was refused,"
		}
		lines = append(lines, fmt.Sprintf("%s (MAC %s) %s the %s at %s.", t.Address, t.MAC, did, t.What, clock(t.Time)))
	}
	return lines
}

// next says what follows a stage.
func next(s api.Stage) string {
	switch s {
	case api.StageRequested:
		return "its BMC to accept the power command"
	case api.StagePowerOn:
		return "its firmware to request an address"
	case api.StageDHCP:
		return "its firmware to fetch a boot loader"
	case api.StageLoader:
		return "iPXE to request its script"
	case api.StageScript, api.StageKernel:
		return "iPXE to fetch kernel and initrd"
	case api.StageInitrd:
		return "Ignition in its initrd to request the pointer"
	case api.StagePointer:
		return "Ignition to fetch its config over TLS"
	case api.StageConfig, api.StageRootfs:
		return "nodeagent to join"
	case api.StageJoined:
		return "nodeagent to apply its HostSpec"
	}
	return "the Machine to be declared Active"
}

// troubles are the conditions that prevent progress.
func troubles(m *api.Machine) []string {
	var list []string
	for _, cond := range m.Status.Conditions {
		held := cond.Type == api.CondHeld && cond.Status == api.True
		bad := cond.Type != api.CondHeld && cond.Status == api.False
		if !held && !bad || cond.Message == "" {
			continue
		}
		list = append(list, fmt.Sprintf("%s is %s (%s): %s.", cond.Type, cond.Status, cond.Reason, cond.Message))
	}
	return list
}

func advice(m *api.Machine) []string {
	name := m.Metadata.Name
	switch {
	case m.Spec.BMC == nil:
		return []string{"It has no BMC in its spec, so bootd cannot power it: add spec.bmc, or switch it on by hand."}
	case m.Spec.Profile == "" && m.Spec.State == api.StateActive:
		return []string{"It has no Profile, so there is nothing to boot: set spec.profile."}
	case m.Status.Phase == api.PhaseFailed:
		return []string{fmt.Sprintf("After removing the cause: weftctl machine reprovision %s.", name) + console(m, " Its console: weftctl console %s.")}
	case m.Status.Phase == api.PhaseProvisioning && m.HasConsole():
		return []string{console(m, "To watch it: weftctl console %s.")}
	}
	return nil
}

// console is advice about a Machine's console, empty when none is known.
func console(m *api.Machine, format string) string {
	if !m.HasConsole() {
		return ""
	}
	return fmt.Sprintf(format, m.Metadata.Name)
}

func clock(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func ago(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return now.Sub(t).Round(time.Second).String() + " ago"
}
