package guest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// checkPart refuses a part that QEMU cannot run.
func checkPart(p *api.GuestPart) error {
	cpus, err := api.ParseCPUSet(p.Tuning.CPUSet)
	switch {
	case err != nil:
		return err
	case p.CPUs < 1 || p.Memory.Value() < 1<<20:
		return errors.New("a Guest needs at least one processor and 1Mi of memory")
	case !slices.Contains([]string{"", qemu.Q35, qemu.MicroVM}, p.Machine):
		return fmt.Errorf("invalid machine %q", p.Machine)
	case p.Firmware == "uefi" && p.Machine == qemu.MicroVM:
		return errors.New("a microvm has no UEFI")
	case p.TPM && p.Machine == qemu.MicroVM:
		return errors.New("a microvm has no TPM")
	case slices.ContainsFunc(p.Shares, func(s api.GuestShare) bool { return api.ValidateName(s.Name) != nil }):
		return errors.New("a share has an invalid name")
	case !slices.Contains([]string{"", "vga", "none"}, p.Display):
		return fmt.Errorf("invalid display %q", p.Display)
	case !slices.Contains([]api.GuestState{api.GuestRunning, api.GuestPaused, api.GuestStopped}, p.State):
		return fmt.Errorf("invalid state %q", p.State)
	case slices.ContainsFunc(p.Disks, func(d api.GuestDisk) bool {
		return !slices.Contains([]string{"", api.DiskVirtioBlk, api.DiskVirtioSCSI}, d.Bus)
	}):
		return errors.New("invalid bus of a disk: want virtio-blk or virtio-scsi")
	case len(cpus) > 0 && len(cpus) < p.CPUs && p.Tuning.HugePages:
		return fmt.Errorf("%d processors do not fit on the %d of %s", p.CPUs, len(cpus), p.Tuning.CPUSet)
	}
	return nil
}

// digest returns a string that differs between different values.
func digest(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return err.Error() // cannot happen: these are plain values
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// machineDigest covers the settings that take effect only at a start.
func machineDigest(p api.GuestPart) string {
	p.State, p.Restart, p.StopTimeout, p.Request, p.Config, p.Transfer = "", "", 0, nil, api.GuestConfig{}, nil
	p.Limits.Receive, p.Limits.Send, p.Limits.DiskBytes, p.Limits.DiskOperations = api.Quantity{}, api.Quantity{}, api.Quantity{}, 0
	p.Shares = slices.Clone(p.Shares)
	for i := range p.Shares {
		p.Shares[i].Version = ""
	}
	p.Disks = slices.Clone(p.Disks)
	for i := range p.Disks {
		p.Disks[i].Size, p.Disks[i].Retain = api.Quantity{}, false
	}
	return digest(p)
}

// machineID returns the UUID of the Guest's machine: its uid if that is a UUID.
func machineID(uid string) string {
	if id, err := uuid.Parse(uid); err == nil {
		return id.String()
	}
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte("rackweft guest "+uid)).String()
}
