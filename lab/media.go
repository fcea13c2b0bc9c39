package lab

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/rackweft/rackweft/lab/bmc"
)

// usbDrive is the machine's USB drive for virtual media. QEMU has it while an
// image was inserted at power-on, or at a reset by the BMC.
type usbDrive struct{ *Machine }

// mediaDevice is QEMU's name of the drive, and mediaDisk of the image in it.
const mediaDevice, mediaDisk = "media", "media-disk"

func (d usbDrive) image() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.media
}

// Insert sets the image that a QEMU started from now on has.
func (d usbDrive) Insert(_ context.Context, image string) error {
	path, err := filepath.Abs(image)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.media = path
	return nil
}

// Eject takes the image out, also of a QEMU that runs: its drive stays, empty.
func (d usbDrive) Eject(ctx context.Context) error {
	d.mu.Lock()
	d.media = ""
	b := d.boot
	d.mu.Unlock()
	if b == nil || b.media == "" {
		return nil
	}
	if err := b.monitor.run(ctx, "eject", map[string]any{"device": mediaDisk, "force": true}); err != nil {
		return fmt.Errorf("eject the virtual medium of %s: %w", d.config.Name, err)
	}
	return nil
}

// mediaArguments gives QEMU the drive. Without an override it is not in the
// boot order.
func mediaArguments(image string, target bmc.Target) []string {
	if image == "" {
		return nil
	}
	return []string{
		"-drive", "if=none,id=" + mediaDisk + ",media=cdrom,readonly=on,format=raw,file=" + escapeOption(image),
		"-device", "qemu-xhci,id=usb,addr=0x7",
		"-device", fmt.Sprintf("usb-storage,id=%s,bus=usb.0,drive=%s,removable=on,bootindex=%d", mediaDevice, mediaDisk, mediaIndex(target)),
	}
}

// mediaIndex is the drive's boot index; -1: none.
func mediaIndex(target bmc.Target) int {
	if target == bmc.Cd || target == bmc.UsbCd {
		return firstIndex
	}
	return -1
}
