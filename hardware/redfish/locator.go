package redfish

import (
	"context"
	"fmt"

	"github.com/rackweft/rackweft/hardware"
)

// identify switches the system's light, or its chassis's where the system has none.
func (r *driver) identify(ctx context.Context, on bool) error {
	sys, etag, err := r.system(ctx)
	if err != nil {
		return err
	}
	at, active, led := r.systemPath, sys.LocationIndicatorActive, sys.IndicatorLED
	if chassis := sys.Links.Chassis.first(); active == nil && led == "" && chassis != "" {
		var c struct {
			Active *bool `json:"LocationIndicatorActive"`
			LED    text  `json:"IndicatorLED"`
		}
		if etag, err = r.get(ctx, chassis, &c); err != nil {
			return err
		}
		at, active, led = chassis, c.Active, c.LED
	}
	w := &write{path: at, etag: etag}
	switch {
	case active != nil: // IndicatorLED's successor: asked for first, since it may keep the old one as a relic
		w.fields = map[string]any{"LocationIndicatorActive": on}
	case led != "" && on:
		w.fields, w.others = map[string]any{"IndicatorLED": text("Lit")}, map[string][]text{"IndicatorLED": {"Blinking"}}
	case led != "":
		w.fields = map[string]any{"IndicatorLED": text("Off")}
	default:
		return fmt.Errorf("%w: neither system nor chassis has a locator light", hardware.ErrUnsupported)
	}
	return r.patch(ctx, w)
}
