package guest

import (
	"crypto/sha256"
	"fmt"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Part is a Guest as its host needs it. One that is on its way to another host
// is to be stopped. The error says what it lacks.
func Part(c *store.Cache, g *api.Guest) (api.GuestPart, error) {
	p := api.GuestPart{
		UID: g.Metadata.UID, Network: g.Spec.Network, Addresses: g.Status.Addresses, MAC: g.Status.MAC,
		CPUs: g.Spec.CPUs, Memory: g.Spec.Memory, Machine: g.Spec.Machine, Firmware: g.Spec.Firmware, SecureBoot: g.Spec.SecureBoot, TPM: g.Spec.TPM,
		Tuning: g.Spec.Tuning, Limits: g.Spec.Limits, Restart: g.Spec.Restart, StopTimeout: g.Spec.StopTimeout, State: g.Spec.State,
	}
	p.Request = g.Status.Request
	if g.Status.Move != nil {
		p.State = stopped
	}
	img, ok := store.Cached[api.Image](c, g.Spec.Image)
	if !ok {
		return p, fmt.Errorf("there is no Image %s: apply it", g.Spec.Image)
	}
	if len(g.Spec.Ignition.Layers) > 0 {
		p.Config = api.GuestConfig{URL: ConfigURL, IgnitionVersion: img.Spec.IgnitionVersion}
	}
	if err := boot(&p, g, img); err != nil {
		return p, err
	}
	if p.State == stopped { // then what it would have beside its disks holds up no move
		return p, nil
	}
	var err error
	p.Shares, err = shares(c, g)
	return p, err
}

// ConfigURL is where a Guest fetches its config: nodeagent answers there, inside
// its Network, and asks for a token that it makes for each start.
const ConfigURL = "http://169.254.169.254/ignition"

// The states of a Guest.
const (
	running = "Running"
	stopped = "Stopped"
)

// rootSize is the disk of a Guest whose spec names none.
const rootSize = 10 << 30

// boot gives a Guest its disks and what it boots from: the Image's disk, which
// its first one begins as, or else its kernel.
func boot(p *api.GuestPart, g *api.Guest, img *api.Image) error {
	held := func(file string) (api.SHA256, bool) {
		f, ok := img.Status.Files[file]
		return f.SHA256, ok
	}
	disks := g.Spec.Disks
	image, isDisk := held(api.DiskFile)
	if _, wanted := img.Spec.Files[api.DiskFile]; wanted && !isDisk {
		return fmt.Errorf("the disk of Image %s is not held yet: see weftctl describe image %s", img.Metadata.Name, img.Metadata.Name)
	}
	if isDisk && len(disks) == 0 {
		disks = []api.Disk{{Name: "root", Size: api.Bytes(rootSize)}}
	}
	for i, d := range disks {
		disk := api.GuestDisk{Name: d.Name, Size: d.Size, Retain: d.Retain, Format: d.Format}
		if i == 0 && isDisk {
			disk.Image = image
		}
		p.Disks = append(p.Disks, disk)
	}
	if isDisk {
		return nil
	}
	kernel, ok := held(api.KernelFile)
	if !ok {
		return fmt.Errorf("the Image %s has neither a disk nor a kernel yet: see weftctl describe image %s", img.Metadata.Name, img.Metadata.Name)
	}
	initrd, _ := held(api.InitrdFile)
	p.Kernel = &api.GuestKernel{Kernel: kernel, Initrd: initrd, Arguments: img.Spec.KernelArguments}
	return nil
}

// MAC is a Guest's for its life: locally administered, and found out of its uid.
func MAC(uid string) api.MAC {
	sum := sha256.Sum256([]byte("guest " + uid))
	return api.MAC(fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", sum[0], sum[1], sum[2], sum[3], sum[4]))
}
