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
	powerBay
	state
}

// powerBay is where HPE tells its power supplies apart.
type powerBay struct {
	Oem struct {
		Hpe struct {
			Bay number `json:"BayNumber"`
		} `json:"Hpe"`
	} `json:"Oem"`
}

func (p part) name() string {
	if bay := int(p.Oem.Hpe.Bay); bay > 0 {
		return fmt.Sprintf("%s, bay %d", p.Name, bay)
	}
	return or(p.FanName, p.Name, p.ID, p.Member)
}

// judge notes the parts that are not well, by what the BMC says of them. An empty bay is no fault unless the BMC calls it one, as Dell does of a
// power supply that was pulled.
func (w *walk) judge(h *hardware.Health, kind string, parts []part) {
	for _, p := range parts {
		switch health := p.health(); health {
		case "Warning", "Critical":
			words := fmt.Sprintf("%s %s: %s", kind, p.name(), health)
			if p.absent() {
				words += " (Absent)"
			}
			h.Worse(health, words)
		}
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
		if err := w.feed(ctx, &h, c); err != nil {
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
		w.judge(h, "temperature", thermal.Temperatures)
		w.judge(h, "fan", thermal.Fans)
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
	w.judge(h, "fan", fans)
	return err
}

func (w *walk) feed(ctx context.Context, h *hardware.Health, c chassis) error {
	var power struct {
		Supplies []part `json:"PowerSupplies"`
	}
	if c.Power.ID != "" {
		ok, err := w.read(ctx, string(c.Power.ID), &power)
		w.judge(h, "power supply", power.Supplies)
		if ok || err != nil {
			return err
		}
	}
	var subsystem struct {
		Supplies link `json:"PowerSupplies"`
	}
	if c.PowerSubsystem.ID == "" {
		return nil
	}
	if ok, err := w.read(ctx, string(c.PowerSubsystem.ID), &subsystem); !ok {
		return err
	}
	supplies, err := listed[part](ctx, w, subsystem.Supplies, hardware.MaxPSUs)
	w.judge(h, "power supply", supplies)
	return err
}
