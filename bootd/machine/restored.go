package machine

import (
	"context"
	"errors"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

// restoredEvery is how often the BMC of a Machine is asked, whose host has not
// reported after a restore, whether it has power at all.
const restoredEvery = 30 * time.Second

// restored leaves a Machine alone until the restored Site knows what it runs. A
// BMC is only asked for the power state: one without power runs nothing.
func (c *Controller) restored(ctx context.Context, m *api.Machine) (time.Duration, error) {
	if r := pending(m); r != nil {
		return 0, c.finish(ctx, m, r, errors.New("bootd was restored and waits for its hosts: weftctl restore status"))
	}
	if m.Status.Conditions.Is(api.CondAccounted) || m.Spec.BMC == nil || m.Status.Conditions.Is(api.CondConnected) {
		return store.HeldRecheck, nil
	}
	var power hardware.PowerState
	wait, err := c.withBMC(ctx, m, "read the power state", func(ctx context.Context, b BMC) (err error) {
		power, err = b.PowerState(ctx)
		return err
	})
	if err != nil {
		return heldOr(max(wait, restoredEvery), err)
	}
	return restoredEvery, c.mutate(ctx, m, func(m *api.Machine) {
		m.Status.Power = string(power)
		if power == hardware.PowerOff && !m.Status.Conditions.Is(api.CondAccounted) {
			m.Status.Conditions.Set(time.Now(), api.CondAccounted, api.True, api.AccountedOff, "its BMC says that it has no power, so it runs nothing")
		}
	})
}
