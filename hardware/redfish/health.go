package redfish

import (
	"context"
	"fmt"

	"github.com/rackweft/rackweft/hardware"
)

// part is anything with a Status: a fan, a temperature, a power supply.
type part struct {
	ID      text `json:"Id"`
	Name    text `json:"Name"`
	FanName text `json:"FanName"` // the name, where Name is the same for all
	Member  text `json:"MemberId"`
	state
}

func (p part) name() string { return or(p.FanName, p.Name, p.ID, p.Member) }

// judge notes a part that is not well, by what the BMC says of it. An empty bay is no fault unless the BMC calls it one, as
// Dell does of a power supply that was pulled.
func judge(h *hardware.Health, kind, name string, is state) {
	health := is.health()
	if health != "Warning" && health != "Critical" {
		return
	}
	words := fmt.Sprintf("%s %s: %s", kind, name, health)
	if is.absent() {
		words += " (Absent)"
	}
	h.Worse(health, words)
}

func judgeAll(h *hardware.Health, kind string, parts []part) {
	for _, p := range parts {
		judge(h, kind, p.name(), p.state)
	}
}

// health reads what the system says of itself, and the parts that its chassis watch. Thermal and Power come before their
// successors: each is one request.
func (r *driver) health(ctx context.Context) (hardware.Health, error) {
	w, err := r.walk(ctx)
	if err != nil {
		return hardware.Health{}, err
	}
	var h hardware.Health
	h.Worse(or(w.sys.Status.Rollup, w.sys.Status.Health), "")
	if err := w.chassis(ctx); err != nil {
		return h, err
	}
	for _, c := range w.shelves {
		if err := w.thermal(ctx, &h, c); err != nil {
			return h, err
		}
		supplies, err := w.suppliesOf(ctx, c)
		for _, p := range supplies {
			judge(&h, "power supply", p.name(), p.state)
		}
		if err != nil {
			return h, err
		}
	}
	return h.Bounded(), nil
}

func (w *walk) thermal(ctx context.Context, h *hardware.Health, c chassis) error {
	var thermal struct {
		Temperatures []part `json:"Temperatures"`
		Fans         []part `json:"Fans"`
	}
	if c.Thermal.ID != "" {
		ok, err := w.read(ctx, string(c.Thermal.ID), &thermal)
		judgeAll(h, "temperature", thermal.Temperatures)
		judgeAll(h, "fan", thermal.Fans)
		if ok || err != nil {
			return err
		}
	}
	var subsystem struct {
		Fans link `json:"Fans"`
	}
	if c.ThermalSubsystem.ID == "" {
		return nil
	}
	if ok, err := w.read(ctx, string(c.ThermalSubsystem.ID), &subsystem); !ok {
		return err
	}
	fans, err := listed[part](ctx, w, subsystem.Fans, 64)
	judgeAll(h, "fan", fans)
	return err
}
