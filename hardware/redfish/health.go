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

// judgeAll notes what the parts measure, and those that are not well.
func judgeAll(h *hardware.Health, kind hardware.ReadingKind, parts []gauge) {
	for _, p := range parts {
		judge(h, string(kind), p.name(), p.state)
	}
	measured(h, kind, parts)
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
		power, err := w.powerOf(ctx, c)
		for _, p := range power.Supplies {
			judge(&h, "power supply", p.name(), p.state)
		}
		measured(&h, hardware.Power, power.Control)
		measured(&h, hardware.Voltage, power.Voltages)
		if err == nil {
			err = w.environment(ctx, &h, c)
		}
		if err != nil {
			return h, err
		}
	}
	return h.Bounded(), nil
}

func (w *walk) thermal(ctx context.Context, h *hardware.Health, c chassis) error {
	var thermal struct {
		Temperatures []gauge `json:"Temperatures"`
		Fans         []gauge `json:"Fans"`
	}
	if c.Thermal.ID != "" {
		ok, err := w.read(ctx, string(c.Thermal.ID), &thermal)
		judgeAll(h, hardware.Temperature, thermal.Temperatures)
		judgeAll(h, hardware.Fan, thermal.Fans)
		if ok || err != nil {
			return err
		}
	}
	var subsystem struct {
		Fans    link `json:"Fans"`
		Metrics link `json:"ThermalMetrics"`
	}
	if c.ThermalSubsystem.ID == "" {
		return nil
	}
	if ok, err := w.read(ctx, string(c.ThermalSubsystem.ID), &subsystem); !ok {
		return err
	}
	fans, err := listed[gauge](ctx, w, subsystem.Fans, 64)
	judgeAll(h, hardware.Fan, fans)
	if err != nil || subsystem.Metrics.ID == "" {
		return err
	}
	var metrics struct {
		Temperatures []excerpt `json:"TemperatureReadingsCelsius"`
	}
	_, err = w.read(ctx, string(subsystem.Metrics.ID), &metrics)
	excerpts(h, hardware.Temperature, "Cel", metrics.Temperatures...)
	return err
}
