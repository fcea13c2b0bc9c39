package ipmibmc

import (
	"context"
	"sync"

	"github.com/bougou/go-ipmi/pkg/hal"
	"github.com/bougou/go-ipmi/pkg/types"

	"github.com/rackweft/rackweft/lab/bmc"
)

// chassis is the machine's power and its boot device.
type chassis struct {
	config Config

	mu    sync.Mutex
	flags types.BootOptionParam_BootFlags // as they were written last
}

// Boot devices of the boot flags (IPMI 2.0 table 28-14).
const (
	deviceNone = 0
	devicePXE  = 1
	deviceDisk = 2
)

func (c *chassis) PowerState(context.Context) (bool, error) {
	return c.config.Machine.Power() == bmc.On, nil
}

func (c *chassis) SetPower(ctx context.Context, on bool) error {
	if on {
		return c.config.Machine.PowerOn(ctx)
	}
	return c.config.Machine.PowerOff(ctx)
}

func (c *chassis) PowerCycle(ctx context.Context) error { return c.config.Machine.Reset(ctx) }
func (c *chassis) ColdReset(ctx context.Context) error  { return c.config.Machine.Reset(ctx) }

// WarmReset is what go-ipmi calls a soft shutdown.
func (c *chassis) WarmReset(ctx context.Context) error { return c.config.Machine.PressButton(ctx) }

func (c *chassis) Identify(context.Context, uint8) error { return nil }

func (c *chassis) IntrusionState(context.Context) (bool, error) { return false, hal.ErrNotSupported }

// SetBootFlags takes the device for the next boot, in the machine's own boot mode.
func (c *chassis) SetBootFlags(ctx context.Context, flags *types.BootOptionParam_BootFlags) error {
	target, ok := map[types.BootDeviceSelector]bmc.Target{deviceNone: bmc.None, devicePXE: bmc.Pxe, deviceDisk: bmc.Hdd}[flags.BootDeviceSelector]
	if !flags.BootFlagsValid {
		target = bmc.None
	}
	uefi := c.config.Firmware == bmc.UEFI
	if !ok || target != bmc.None && bool(flags.BIOSBootType) != uefi {
		return hal.ErrNotSupported
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flags = *flags
	return c.config.Machine.SetOverride(ctx, bmc.Override{Target: target, Once: target != bmc.None && !flags.Persist})
}

// GetBootFlags shows no device once a boot has used it.
func (c *chassis) GetBootFlags(context.Context) (*types.BootOptionParam_BootFlags, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	flags := c.flags
	if target := c.config.Machine.Override().Target; target == bmc.None || target == "" {
		flags.BootFlagsValid, flags.BootDeviceSelector = false, deviceNone
	}
	return &flags, nil
}

func (c *chassis) SetBootInfoAcknowledge(context.Context, *types.BootOptionParam_BootInfoAcknowledge) error {
	return nil
}

func (c *chassis) GetBootInfoAcknowledge(context.Context) (*types.BootOptionParam_BootInfoAcknowledge, error) {
	return nil, hal.ErrNotSupported
}
