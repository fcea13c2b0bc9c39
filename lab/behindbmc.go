package lab

import (
	"context"
	"net"

	"github.com/rackweft/rackweft/lab/bmc"
)

// behindBMC is the machine as its BMC drives it.
type behindBMC struct{ *Machine }

// Hardware is the machine as a BMC drives it: for one that is not the lab's.
func Hardware(m *Machine) bmc.Machine { return behindBMC{m} }

// ListenPacket listens on a UDP port of the machine's BMC.
func ListenPacket(m *Machine, port int) (conn *net.UDPConn, err error) {
	entered := inNamespace(m.rack.netNamespace(), func() error {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: m.config.BMCAddress(), Port: port})
		return err
	})
	return conn, entered
}

func (m behindBMC) PowerOn(ctx context.Context) error { return m.powerOn(ctx, causeBMC) }

func (m behindBMC) PowerOff(ctx context.Context) error {
	m.power.Lock()
	defer m.power.Unlock()
	return m.powerOff(ctx, causeBMC)
}

func (m behindBMC) PressButton(ctx context.Context) error {
	b := m.current()
	if b == nil {
		return bmc.ErrOff
	}
	return b.monitor.run(ctx, "system_powerdown", nil)
}

// Reset resets in place. HTTP boot needs a new QEMU before and after: whether
// OVMF offers PXE is part of its command line, and the URL is in its variables.
// A new asset tag and another virtual medium need one, too.
func (m behindBMC) Reset(ctx context.Context) error {
	m.power.Lock()
	defer m.power.Unlock()
	b := m.current()
	if b == nil {
		return bmc.ErrOff
	}
	same := b.tag == m.shownTag() && b.media == usbDrive(m).image()
	if same && b.target != bmc.UefiHTTP && m.Override().Target != bmc.UefiHTTP {
		return m.resetInPlace(ctx, causeBMC)
	}
	if err := m.powerOff(ctx, causeBMC); err != nil {
		return err
	}
	return m.start(ctx, causeBMC)
}

func (m behindBMC) NMI(ctx context.Context) error {
	b := m.current()
	if b == nil {
		return bmc.ErrOff
	}
	return b.monitor.run(ctx, "inject-nmi", nil)
}

func (m behindBMC) DialConsole(ctx context.Context) (net.Conn, error) {
	if m.current() == nil {
		return nil, bmc.ErrOff
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", m.ConsoleSocket())
}
