package guest

import (
	"crypto/sha256"
	"fmt"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
)

// PartOn compiles the part of a Guest for a host, by the uid of its Machine: the host that it is on, the target
// of its move, or one that keeps the copy that it left. It is nil for any other. The error says what the Guest
// lacks.
func PartOn(c *store.Cache, g *api.Guest, hostUID string) (*api.GuestPart, error) {
	p, err := Part(c, g)
	switch {
	case hostUID == "":
		return nil, nil
	case g.Status.HostUID == hostUID:
		return &p, err
	case Has(g, hostUID):
		p.Transfer = share(c, g, api.TransferTarget)
		fleeting(&p)
		return &p, err
	}
	for _, left := range g.Status.Left {
		if left.HostUID == hostUID && left.Held != "" {
			p.State, p.Request = api.GuestStopped, nil
			p.Transfer = &api.GuestTransfer{ID: left.Held, Role: api.TransferLeft}
			fleeting(&p)
			return &p, nil // it does not run the Guest, whatever that lacks
		}
	}
	return nil, nil
}

// Has reports whether a host, by its Machine's uid, has a Guest or receives it.
func Has(g *api.Guest, hostUID string) bool {
	move := g.Status.Move
	return g.Status.HostUID == hostUID || move != nil && move.Step == api.MoveTransfer && move.Target.HostUID == hostUID
}

// fleeting makes no disk outlive the Guest on this host, because this host's copy is not the Guest's own yet, or
// no longer.
func fleeting(p *api.GuestPart) {
	for i := range p.Disks {
		p.Disks[i].Retain = false
	}
}

// share is a host's part in the current move.
func share(c *store.Cache, g *api.Guest, role string) *api.GuestTransfer {
	move := g.Status.Move
	t := &api.GuestTransfer{ID: move.ID, Role: role, Live: move.Mode == api.MigrateLive}
	target, known := store.Cached[api.Machine](c, move.Target.Host)
	if !known || target.Metadata.UID != move.Target.HostUID {
		return t
	}
	t.Address = network.VTEP(c, target)
	t.Peer = identity(target)
	if role == api.TransferTarget {
		t.Peer = api.HostIdentity{Host: g.Status.Host, UID: g.Status.HostUID}
		if source, ok := store.Cached[api.Machine](c, g.Status.Host); ok && source.Metadata.UID == g.Status.HostUID {
			t.Peer = identity(source)
		}
	}
	return t
}

func identity(m *api.Machine) api.HostIdentity {
	return api.HostIdentity{Host: m.Metadata.Name, UID: m.Metadata.UID, Key: m.Status.HostKey}
}

// Part compiles the guest part for the Guest's host. A Guest that will start again elsewhere must be stopped. The
// error says what it lacks.
func Part(c *store.Cache, g *api.Guest) (api.GuestPart, error) {
	p := api.GuestPart{
		UID: g.Metadata.UID, Network: g.Spec.Network, Addresses: g.Status.Addresses, MAC: g.Status.MAC,
		CPUs: g.Spec.CPUs, Memory: g.Spec.Memory, Machine: g.Spec.Machine, Firmware: g.Spec.Firmware, Display: g.Spec.Display, SecureBoot: g.Spec.SecureBoot, TPM: g.Spec.TPM,
		Tuning: g.Spec.Tuning, Limits: g.Spec.Limits, Restart: g.Spec.Restart, StopTimeout: g.Spec.StopTimeout, State: g.Spec.State,
	}
	p.Request = g.Status.Request
	if move := g.Status.Move; move != nil {
		switch move.Step {
		case api.MoveChoosing:
		case api.MoveTransfer:
			p.Transfer = share(c, g, api.TransferSource)
		case api.MoveBack:
			p.Transfer = share(c, g, api.TransferBack)
		default:
			p.State = api.GuestStopped
		}
	}
	img, ok := store.Cached[api.Image](c, g.Spec.Image)
	if !ok {
		return p, fmt.Errorf("there is no Image %s: apply it", g.Spec.Image)
	}
	if err := configured(&p, c, g, img); err != nil {
		return p, err
	}
	if err := boot(&p, g, img); err != nil {
		return p, err
	}
	if p.State == api.GuestStopped { // so that a missing Image does not block a move
		return p, nil
	}
	var err error
	p.Shares, err = shares(c, g)
	return p, err
}

// configured says how a Guest gets its config.
func configured(p *api.GuestPart, c *store.Cache, g *api.Guest, img *api.Image) error {
	byCloudInit := img.Spec.ConfiguredBy == api.CloudInit
	switch {
	case byCloudInit && len(g.Spec.Ignition.Layers) > 0:
		return fmt.Errorf("the Image %s is configured by cloud-init, which reads no Layers: set cloudInit instead of ignition", img.Metadata.Name)
	case !byCloudInit && g.Spec.CloudInit != nil:
		return fmt.Errorf("the Image %s is configured by Ignition: set ignition instead of cloudInit, or configuredBy: cloud-init in the Image", img.Metadata.Name)
	case byCloudInit:
		p.Config.CloudInit = &api.CloudInitSeed{Domain: domain(c, g)}
	case len(g.Spec.Ignition.Layers) > 0:
		p.Config = api.GuestConfig{URL: ConfigURL, IgnitionVersion: img.Spec.IgnitionVersion}
	}
	return nil
}

// ConfigURL is the URL of a Guest's config: nodeagent serves it, inside the Guest's Network, and requires a token
// that it creates for each start.
const ConfigURL = "http://169.254.169.254/ignition"

// rootSize is the size of the disk of a Guest whose spec names none.
const rootSize = 10 << 30

// boot sets a Guest's disks and what it boots: the Image's disk, from which its first one is created, or else its
// kernel.
func boot(p *api.GuestPart, g *api.Guest, img *api.Image) error {
	held := func(file string) (api.SHA256, bool) {
		f, ok := img.Status.Files[file]
		return f.SHA256, ok
	}
	disks := g.Spec.Disks
	image, isDisk := held(api.DiskFile)
	if _, wanted := img.Spec.Files[api.DiskFile]; wanted && !isDisk {
		return fmt.Errorf("the disk of Image %s is not uploaded yet: see weftctl describe image %s", img.Metadata.Name, img.Metadata.Name)
	}
	if isDisk && len(disks) == 0 {
		disks = []api.Disk{{Name: "root", Size: api.Bytes(rootSize)}}
	}
	for i, d := range disks {
		disk := api.GuestDisk{Name: d.Name, Size: d.Size, Retain: d.Retain, Format: d.Format, Bus: d.Bus}
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

// MAC is a Guest's MAC for its lifetime: locally administered, and derived from its uid.
func MAC(uid string) api.MAC {
	sum := sha256.Sum256([]byte("guest " + uid))
	return api.MAC(fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", sum[0], sum[1], sum[2], sum[3], sum[4]))
}
