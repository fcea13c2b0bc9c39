package ipmi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/rackweft/rackweft/hardware"
)

// BMC is the one server behind a Service.
type BMC struct{ service *Service }

var _ hardware.BMC = (*BMC)(nil)

// Identity tells who answers, as it was read at the login.
func (b *BMC) Identity(context.Context) (hardware.Identity, error) { return b.service.identity, nil }

// Fingerprint is empty: IPMI has no certificates.
func (b *BMC) Fingerprint() string { return "" }

// PowerState reads the power state.
func (b *BMC) PowerState(ctx context.Context) (state hardware.PowerState, err error) {
	err = b.service.do(ctx, "read power state", func() error {
		state, err = b.service.powerState(ctx)
		return err
	})
	return state, err
}

// PowerOn returns once the server is seen on, or is on already.
func (b *BMC) PowerOn(ctx context.Context) error {
	return b.service.do(ctx, "power on", func() error { return b.service.power(ctx, verbOn) })
}

// PowerOff takes the power away.
func (b *BMC) PowerOff(ctx context.Context) error {
	return b.service.do(ctx, "power off", func() error { return b.service.power(ctx, verbOff) })
}

// ForceRestart resets the server; one that is off is powered on. IPMI shows no trace of a reset: that the BMC has accepted
// it, and the server is on, is all that is seen.
func (b *BMC) ForceRestart(ctx context.Context) error {
	return b.service.do(ctx, "restart", func() error { return b.service.power(ctx, verbRestart) })
}

// GracefulShutdown asks the operating system to shut down, which may ignore it.
func (b *BMC) GracefulShutdown(ctx context.Context) error {
	return b.service.do(ctx, "shut down", func() error { return b.service.power(ctx, verbShutdown) })
}

// SetBootOnce sets the boot flags for the next boot, and reads them back. They always say the firmware's mode: UEFI, unless
// legacy is asked for.
func (b *BMC) SetBootOnce(ctx context.Context, boot hardware.Boot) error {
	if err := boot.Check(); err != nil {
		return fmt.Errorf("set next boot on BMC %s: %w", b.service.address, err)
	}
	return b.service.do(ctx, fmt.Sprintf("set next boot to %s", boot.Target), func() error { return b.service.setBootOnce(ctx, boot) })
}

// LastReset knows nothing: IPMI tells why the server was last started (§28.11), and not when.
func (b *BMC) LastReset(context.Context) (hardware.ResetEvidence, error) {
	return hardware.ResetEvidence{}, nil
}

// Subscribe is ErrUnsupported: IPMI's alerts (§17) reach no HTTPS server.
func (b *BMC) Subscribe(ctx context.Context, _ hardware.Subscription) error {
	return b.service.do(ctx, "subscribe to events", func() error { return errNoEvents() })
}

// Unsubscribe is ErrUnsupported, as Subscribe is.
func (b *BMC) Unsubscribe(ctx context.Context, _ string) error {
	return b.service.do(ctx, "end the subscription to events", func() error { return errNoEvents() })
}

func errNoEvents() error { return unsupported("IPMI sends no events over HTTPS") }

// ResetBMC is Cold Reset (§20.2): an accepted command counts as done, because IPMI reports no restart.
func (b *BMC) ResetBMC(ctx context.Context) error {
	return b.service.do(ctx, "restart the BMC", func() error {
		return b.service.order(ctx, request{name: "Cold Reset", netfn: 0x06, command: 0x02})
	})
}

// AssetTag is ErrUnsupported: what IPMI calls so is not what the firmware shows in SMBIOS.
func (b *BMC) AssetTag(ctx context.Context) (string, error) {
	return "", b.service.do(ctx, "read the asset tag", func() error { return errNoTag() })
}

// SetAssetTag is ErrUnsupported, as AssetTag is.
func (b *BMC) SetAssetTag(ctx context.Context, _ string) error {
	return b.service.do(ctx, "write the asset tag", func() error { return errNoTag() })
}

func errNoTag() error { return unsupported("IPMI has no asset tag that SMBIOS shows") }

// TrustAtBoot is ErrUnsupported: IPMI carries no certificates.
func (b *BMC) TrustAtBoot(ctx context.Context, _ *x509.Certificate) error {
	return b.service.do(ctx, "have a CA trusted at HTTPS boot", func() error { return unsupported("IPMI carries no certificates") })
}

// InsertMedia is ErrUnsupported: IPMI has no virtual media.
func (b *BMC) InsertMedia(ctx context.Context, _ hardware.Media) error {
	return b.service.do(ctx, "insert virtual media", func() error { return errNoMedia() })
}

// EjectMedia is ErrUnsupported, as InsertMedia is.
func (b *BMC) EjectMedia(ctx context.Context, _ string) error {
	return b.service.do(ctx, "eject virtual media", func() error { return errNoMedia() })
}

func errNoMedia() error { return unsupported("IPMI has no virtual media") }

// Inventory reads who made the server out of its FRU data. IPMI tells nothing of what is in it, which Incomplete says.
func (b *BMC) Inventory(ctx context.Context) (inventory hardware.Inventory, err error) {
	err = b.service.do(ctx, "read inventory", func() error {
		inventory, err = b.service.inventory(ctx)
		return err
	})
	return inventory, err
}

// Health is ErrUnsupported: over IPMI each sensor takes several requests.
func (b *BMC) Health(ctx context.Context) (hardware.Health, error) {
	return hardware.Health{}, b.service.do(ctx, "read health", func() error { return unsupported("health and sensors are read over Redfish only") })
}

// Identify switches the locator light.
func (b *BMC) Identify(ctx context.Context, on bool) error {
	return b.service.do(ctx, "switch the locator light", func() error { return b.service.identify(ctx, on) })
}

// Consoles is serial over LAN, in a session of its own.
func (b *BMC) Consoles(context.Context) ([]hardware.ConsoleWay, error) {
	return []hardware.ConsoleWay{{Kind: hardware.ConsoleSOL, Open: b.openConsole, Free: b.FreeConsole}}, nil
}

func (b *BMC) openConsole(ctx context.Context) (*hardware.Console, error) {
	c, err := b.service.console(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the console of BMC %s over IPMI: %w", b.service.address, err)
	}
	return &hardware.Console{ReadWriteCloser: c, Kind: hardware.ConsoleSOL}, nil
}

// FreeConsole ends another client's session with the console, which may be one that was left behind.
func (b *BMC) FreeConsole(ctx context.Context) error {
	return b.service.do(ctx, "free the console", func() error { return b.service.freeConsole(ctx) })
}

// getDeviceID is §20.1.
var getDeviceID = request{name: "Get Device ID", netfn: 0x06, command: 0x01}

// parseDeviceID reads the firmware's version, and who made the BMC by the number that IANA gave them.
func parseDeviceID(answer []byte) (hardware.Identity, error) {
	if len(answer) < 11 {
		return hardware.Identity{}, fmt.Errorf("BMC answers %d bytes to Get Device ID: want 11 at least", len(answer))
	}
	maker := int(answer[6]) | int(answer[7])<<8 | int(answer[8]&0x0f)<<16
	product := int(answer[9]) | int(answer[10])<<8
	return hardware.Identity{
		Vendor:   makers(maker),
		BMC:      fmt.Sprintf("IPMI product %d", product),
		Firmware: fmt.Sprintf("%d.%02x", answer[2]&0x7f, answer[3]),
	}, nil
}

func makers(number int) string {
	known := map[int]string{2: "IBM", 11: "HPE", 343: "Intel", 674: "Dell", 2623: "ASUS", 6653: "Tyan", 7244: "Quanta", 10368: "Fujitsu",
		10876: "Supermicro", 15370: "Gigabyte", 19046: "Lenovo", 49622: "ASRock Rack", 47488: "Supermicro"}
	if name, ok := known[number]; ok {
		return name
	}
	return fmt.Sprintf("IANA enterprise %d", number)
}

// identify is Chassis Identify (§28.5). A BMC that cannot keep the light on is asked for the longest time.
func (s *Service) identify(ctx context.Context, on bool) error {
	r := request{name: "Chassis Identify", netfn: 0x00, command: 0x04, data: []byte{0}}
	if !on {
		return s.order(ctx, r)
	}
	r.data = []byte{0, 1}
	err := s.order(ctx, r)
	if errors.Is(err, hardware.ErrUnsupported) {
		r.data = []byte{255}
		err = s.order(ctx, r)
	}
	return err
}

// inventory reads FRU device 0. That a BMC has none is no error.
func (s *Service) inventory(ctx context.Context) (hardware.Inventory, error) {
	found := hardware.Inventory{BMCFirmware: s.identity.Firmware,
		Incomplete: []string{"IPMI tells nothing of processors, memory, network ports and disks"}}
	out, err := s.tool.run(ctx, "fru", "print", "0")
	if errors.Is(err, hardware.ErrUnreachable) || errors.Is(err, hardware.ErrUnauthorized) || ctx.Err() != nil {
		return found, err
	}
	if err != nil {
		found.Incomplete = append(found.Incomplete, err.Error())
	}
	fru := parseFRU(out)
	found.Manufacturer = first(fru, "Product Manufacturer", "Board Mfg")
	found.Model = first(fru, "Product Name", "Board Product")
	found.Serial = first(fru, "Product Serial", "Chassis Serial", "Board Serial")
	found.SKU = fru["Product Part Number"]
	return found, nil
}

// parseFRU reads what ipmitool prints of a FRU device: a name, a colon and a value on each line.
func parseFRU(out string) map[string]string {
	fields := map[string]string{}
	for line := range strings.Lines(out) {
		name, value, ok := strings.Cut(line, " : ")
		name, value = strings.TrimSpace(name), clip(value)
		if ok && fields[name] == "" && value != "" && len(fields) < 100 {
			fields[name] = value
		}
	}
	return fields
}

func first(fields map[string]string, names ...string) string {
	for _, name := range names {
		if fields[name] != "" {
			return fields[name]
		}
	}
	return ""
}
