package ipmi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// Parameters of the system boot options (§28.13).
const (
	paramValidClearing = 3
	paramBootFlags     = 5
)

// The first byte of the boot flags.
const (
	flagsValid = 0x80
	flagsUEFI  = 0x20
)

// bootFlags is parameter 5; of its five bytes the last three are left at the firmware's own choice.
type bootFlags struct{ flags, device byte }

// flagsFor gives the flags of the next boot, without the bit that would make them persistent.
func flagsFor(boot hardware.Boot) (bootFlags, error) {
	if boot.Target == hardware.BootNone {
		return bootFlags{}, nil
	}
	device, ok := map[hardware.BootTarget]byte{hardware.BootPXE: 1, hardware.BootDisk: 2, hardware.BootMedia: 5, hardware.BootSetup: 6}[boot.Target]
	if !ok {
		return bootFlags{}, unsupported("IPMI has no boot device for " + string(boot.Target))
	}
	f := bootFlags{flags: flagsValid | flagsUEFI, device: device << 2}
	if boot.Mode == hardware.ModeLegacy {
		f.flags &^= flagsUEFI
	}
	return f, nil
}

// setBootOnce writes the flags and reads them back.
func (s *Service) setBootOnce(ctx context.Context, boot hardware.Boot) error {
	want, err := flagsFor(boot)
	if err != nil {
		return err
	}
	if want.flags&flagsValid != 0 {
		s.keepFlags(ctx)
	}
	if err := s.order(ctx, setBootOption(paramBootFlags, want.flags, want.device, 0, 0, 0)); err != nil {
		return err
	}
	return s.verifyBoot(ctx, want)
}

// keepFlags has the BMC keep the flags for longer than the 60 seconds in which the power action has to follow otherwise:
// its look at the power state before may take as long. Many BMCs do not offer it, and some keep them anyway.
func (s *Service) keepFlags(ctx context.Context) {
	if err := s.order(ctx, setBootOption(paramValidClearing, 0x08)); err != nil {
		s.log.Debug("BMC drops the boot device a minute after it was set", "why", err)
	}
}

func setBootOption(parameter byte, data ...byte) request {
	return request{name: "Set System Boot Options", netfn: 0x00, command: 0x08, data: append([]byte{parameter}, data...)}
}

// verifyBoot reads back until the BMC shows what was written; some need a moment.
func (s *Service) verifyBoot(ctx context.Context, want bootFlags) error {
	var shown bootFlags
	for try := 1; try <= 4; try++ {
		answer, err := s.send(ctx, request{name: "Get System Boot Options", netfn: 0x00, command: 0x09, data: []byte{paramBootFlags, 0, 0}})
		if err == nil {
			shown, err = parseBootFlags(answer)
		}
		if err != nil {
			return fmt.Errorf("read back: %w", err)
		}
		if shown.device == want.device {
			s.doubt(want, shown)
			return nil
		}
		if err := s.pause(ctx, 2*time.Second); err != nil {
			return err
		}
	}
	return fmt.Errorf("BMC took boot device %d but shows %d: boot would go elsewhere", want.device>>2, shown.device>>2)
}

// doubt says what else differs. Not every BMC keeps these bits where it shows them (ipmi_sim does not), and yet heeds them.
func (s *Service) doubt(want, shown bootFlags) {
	if want.flags != shown.flags {
		s.log.Info("BMC took the boot device, and shows other flags than were written: if it boots elsewhere, this is why",
			"written", hexByte(want.flags), "shown", hexByte(shown.flags))
	}
}

// parseBootFlags reads an answer: version, parameter with a bit that says that it is not valid, and its five bytes.
func parseBootFlags(answer []byte) (bootFlags, error) {
	if len(answer) < 7 || answer[1]&0x7f != paramBootFlags {
		return bootFlags{}, fmt.Errorf("BMC does not tell its boot flags: it answers % x", answer)
	}
	if answer[1]&0x80 != 0 {
		return bootFlags{}, errors.New("BMC took the boot flags, and shows them as invalid or locked")
	}
	return bootFlags{flags: answer[2], device: answer[3] & 0x3c}, nil
}
