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

// checkPart refuses what no QEMU can be made of.
func checkPart(p *api.GuestPart) error {
	cpus, err := api.ParseCPUSet(p.Tuning.CPUSet)
	switch {
	case err != nil:
		return err
	case p.CPUs < 1 || p.Memory.Value() < 1<<20:
		return errors.New("a Guest needs at least one processor and 1Mi of memory")
	case !slices.Contains([]string{"", qemu.Q35, qemu.MicroVM}, p.Machine):
		return fmt.Errorf("no machine is called %q", p.Machine)
	case p.Firmware == "uefi" && p.Machine == qemu.MicroVM:
		return errors.New("a microvm has no UEFI")
	case p.TPM && p.Machine == qemu.MicroVM:
		return errors.New("a microvm has no TPM")
	case slices.ContainsFunc(p.Shares, func(s api.GuestShare) bool { return api.ValidateName(s.Name) != nil }):
		return errors.New("a share's name is none")
	case !slices.Contains([]string{"", "vga", "none"}, p.Display):
		return fmt.Errorf("no display is called %q", p.Display)
	case !slices.Contains([]api.GuestState{api.GuestRunning, api.GuestPaused, api.GuestStopped}, p.State):
		return fmt.Errorf("no state is called %q", p.State)
	case slices.ContainsFunc(p.Disks, func(d api.GuestDisk) bool {
		return !slices.Contains([]string{"", api.DiskVirtioBlk, api.DiskVirtioSCSI}, d.Bus)
	}):
		return errors.New("a disk is on a bus that this nodeagent does not know: it knows virtio-blk and virtio-scsi")
	case len(cpus) > 0 && len(cpus) < p.CPUs && p.Tuning.HugePages:
		return fmt.Errorf("%d processors cannot be had from the %d of %s", p.CPUs, len(cpus), p.Tuning.CPUSet)
	}
	return nil
}

// digest tells values apart.
func digest(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return err.Error() // never: these are plain values
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// machineDigest is over what takes effect at a start only.
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

// machineID is the UUID that the Guest's machine has: its uid where that is one.
func machineID(uid string) string {
	if id, err := uuid.Parse(uid); err == nil {
		return id.String()
	}
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte("rackweft guest "+uid)).String()
}
