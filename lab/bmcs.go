package lab

import (
	"context"
	"fmt"
	"net"
	"strconv"

	"github.com/rackweft/rackweft/lab/bmc"
)

// BMCConfig says how a machine's BMC behaves. The zero value is a BMC of the
// machine's own that follows the standard.
type BMCConfig struct {
	// Unit makes the machine one more system of the BMC of the machine in that
	// unit, whose settings then count; zero: its own.
	Unit int
	// SystemID is the Id of its ComputerSystem. Default: its number, from 1.
	SystemID string
	// Helper is the Id of a further system, listed first, which has no power of
	// its own and no Reset action, as the GPU baseboard of a GH200; empty: none.
	Helper string
	// Login is how clients may log in. Default: bmc.AnyLogin.
	Login bmc.Login
	// MaxSessions bounds the sessions at a time. Default: 8.
	MaxSessions int
	// Events is how clients get the BMC's events. Default: bmc.StreamAndPost.
	Events bmc.EventAccess
	// Console is how the machine's serial port is reached.
	Console bmc.Console
	// Media is the style of the machine's virtual media. Default: it has none.
	Media bmc.MediaStyle
	// POST makes the machine's system report its power-on self-test, as HPE's do.
	POST bmc.POST
	// NoHTTPBoot makes the BMC have no boot over HTTP.
	NoHTTPBoot bool
}

func (c MachineConfig) bmcUnit() int {
	if c.BMC.Unit == 0 {
		return c.Unit
	}
	return c.BMC.Unit
}

func (c MachineConfig) ownsBMC() bool { return c.bmcUnit() == c.Unit }

// nameSystems gives every machine the Id of its system.
func nameSystems(machines []MachineConfig) error {
	owners, used := map[int]bool{}, map[int]map[string]bool{}
	for _, m := range machines {
		if m.ownsBMC() {
			owners[m.Unit], used[m.Unit] = true, map[string]bool{}
		}
	}
	for i := range machines {
		m := &machines[i]
		if !owners[m.bmcUnit()] {
			return fmt.Errorf("machine %s: the machine in unit %d has no BMC of its own", m.Name, m.BMC.Unit)
		}
		ids := used[m.bmcUnit()]
		if m.BMC.SystemID == "" {
			m.BMC.SystemID = strconv.Itoa(len(ids) + 1)
		}
		for _, id := range []string{m.BMC.SystemID, m.BMC.Helper} {
			if id != "" && ids[id] {
				return fmt.Errorf("machine %s: its BMC has two systems %q", m.Name, id)
			}
			ids[id] = true
		}
		delete(ids, "")
	}
	return nil
}

// controller is a BMC, and the Id of the machine's system there.
type controller struct {
	*bmc.Server
	system string
}

func (c controller) notify(kind bmc.EventKind, target bmc.Target, cause string) {
	c.Notify(bmc.Event{Kind: kind, System: c.system, Target: target, Cause: cause})
}

// addBMC starts the BMC of a machine, and of all that share it.
func (r *Rack) addBMC(owner *Machine) error {
	address := owner.config.BMCAddress()
	var systems []bmc.SystemConfig
	if helper := owner.config.BMC.Helper; helper != "" {
		systems = append(systems, bmc.SystemConfig{ID: helper, Inventory: helperInventory(owner)})
	}
	var behind []*Machine
	for _, m := range r.machines {
		if m.config.bmcUnit() == owner.config.Unit {
			behind = append(behind, m)
			systems = append(systems, bmc.SystemConfig{
				ID: m.config.BMC.SystemID, Inventory: inventory(m), Machine: behindBMC{m},
				POST: m.config.BMC.POST, NoHTTPBoot: m.config.BMC.NoHTTPBoot, Console: m.config.BMC.Console, Media: bmc.Media{Style: m.config.BMC.Media, Drive: usbDrive{m}},
			})
		}
	}
	server, err := bmc.New(bmc.Config{
		Dir: owner.dir, Address: address, Username: BMCUser, Password: r.password, Systems: systems,
		Login: owner.config.BMC.Login, MaxSessions: owner.config.BMC.MaxSessions, Events: owner.config.BMC.Events,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dialIn(ctx, r.netNamespace(), network, address)
		},
	}, owner.log)
	if err != nil {
		return err
	}
	for _, m := range behind {
		m.bmc = controller{server, m.config.BMC.SystemID}
	}
	listener, err := r.listen(r.netNamespace(), net.JoinHostPort(address.String(), "443"))
	if err != nil {
		return err
	}
	r.work.Go(func() {
		if err := server.Serve(listener); err != nil {
			owner.log.Error("the BMC has stopped", "error", err)
		}
	})
	for _, m := range behind {
		if err := addConsole(r, m); err != nil {
			return fmt.Errorf("console of %s: %w", m.config.Name, err)
		}
	}
	return nil
}

// addConsole starts the SSH service of the machine's serial port, if it has one.
func addConsole(r *Rack, m *Machine) error {
	port := m.bmc.ConsolePort(m.bmc.system)
	if port == 0 {
		return nil
	}
	listener, err := r.listen(r.netNamespace(), net.JoinHostPort(m.config.BMCAddress().String(), strconv.Itoa(port)))
	if err != nil {
		return err
	}
	r.work.Go(func() {
		if err := m.bmc.ServeConsole(m.bmc.system, listener); err != nil {
			m.log.Error("the BMC's SSH service has stopped", "error", err)
		}
	})
	return nil
}

func inventory(m *Machine) bmc.Inventory {
	c := m.config
	mode := bmc.Legacy
	if c.Firmware == UEFI {
		mode = bmc.UEFI
	}
	return bmc.Inventory{
		UUID: m.uuid, Serial: c.serial(), SKU: "LAB-1", Manufacturer: manufacturer, Model: product,
		BIOSVersion: c.biosVersion(), Firmware: mode, CPUs: c.CPUs, CPUModel: "QEMU virtual CPU", MemoryMiB: c.MemoryMiB,
		NICs:       []bmc.NIC{{Name: "NIC 1", MAC: c.MAC(0)}, {Name: "NIC 2", MAC: c.MAC(1)}},
		DiskSerial: DiskSerial, DiskBytes: diskBytes,
	}
}

// helperInventory is that of a baseboard: no NIC, and a UUID of its own.
func helperInventory(m *Machine) bmc.Inventory {
	return bmc.Inventory{
		UUID: systemUUID(m.rack.config.Name, m.config.Name+".helper"), Serial: m.config.serial() + "-H", SKU: "LAB-H",
		Manufacturer: manufacturer, Model: "Lab Baseboard", BIOSVersion: "1", Firmware: bmc.UEFI,
		CPUs: 1, CPUModel: "Lab accelerator", MemoryMiB: 1024,
	}
}
