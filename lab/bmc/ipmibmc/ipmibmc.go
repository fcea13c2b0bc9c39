// Package ipmibmc has a lab machine's BMC speak IPMI 2.0. The protocol is that of go-ipmi's reference server, which knows
// cipher suite 17; OpenIPMI's ipmi_sim does not.
package ipmibmc

import (
	"context"
	"fmt"
	"net"

	ipmi "github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/hal"
	"github.com/bougou/go-ipmi/pkg/server"
	"github.com/bougou/go-ipmi/pkg/transport/udp"
	"github.com/bougou/go-ipmi/pkg/types"

	"github.com/rackweft/rackweft/lab/bmc"
)

// Config is what a BMC works with.
type Config struct {
	Machine            bmc.Machine
	Firmware           bmc.Firmware // the only boot mode that it takes
	Username, Password string
	Suites             []int // cipher suites. Default: 3 and 17
}

// Serve answers IPMI on conn until ctx ends, and closes conn.
func Serve(ctx context.Context, conn *net.UDPConn, c Config) error {
	b := ipmi.New(ipmi.DeviceInfo{DeviceID: 32, DeviceRevision: 1, FirmwareMajor: 2, FirmwareMinor: 0x33, IPMIVersion: 0x02, ManufacturerID: 4753, ProductID: 3842},
		[16]byte{0: 0xa1}, &hardware{chassis{config: c}, serial{config: c}})
	if len(c.Suites) > 0 {
		suites := make([]types.CipherSuiteID, len(c.Suites))
		for i, suite := range c.Suites {
			suites[i] = types.CipherSuiteID(suite)
		}
		b.SetCipherSuites(suites)
	}
	user, err := b.Users.Add(2, c.Username)
	if err != nil {
		return fmt.Errorf("BMC user %s: %w", c.Username, err)
	}
	user.SetPassword([]byte(c.Password))
	user.Enabled = true
	user.ChannelAccess[1] = ipmi.UserChannelAccess{MaxPrivilege: ipmi.PrivilegeLevelAdministrator, Enabled: true}
	s := server.NewServer(b, udp.Wrap(conn), server.WithV15Disabled())
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if err := s.Serve(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("IPMI: %w", err)
	}
	return nil
}

// hardware is what go-ipmi drives: power, boot device and serial port.
type hardware struct {
	chassis chassis
	serial  serial
}

func (h *hardware) Chassis() hal.ChassisHAL { return &h.chassis }
func (h *hardware) Console() hal.ConsoleHAL { return &h.serial }
func (h *hardware) Sensors() hal.SensorHAL  { return nil }
func (h *hardware) Storage() hal.StorageHAL { return nil }
func (h *hardware) Network() hal.NetworkHAL { return nil }
func (h *hardware) GPIO() hal.GPIOHAL       { return nil }
func (h *hardware) I2C() hal.I2CHAL         { return nil }
func (h *hardware) Close() error            { return nil }
