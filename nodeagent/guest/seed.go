package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// seedWait bounds the request for user data.
const seedWait = configWait

// maxUserData exceeds bootd's limit for user data, in bytes.
const maxUserData = 4 << 20

// cloudInit makes the disk from which cloud-init reads its data source NoCloud:
// a file system labelled cidata with meta-data, user-data and network-config.
// It is created in memory at each start.
type cloudInit struct {
	*identity
	record *ledger
	config func(ctx context.Context, guest string) (Config, error)
}

// open creates the disk. User data is fetched from bootd at each start. A Guest
// that had it once starts without it if bootd is unreachable, because
// cloud-init has done its once-only work by then.
func (c *cloudInit) open(ctx context.Context, part *api.GuestPart, vm *qemu.VM, files *opened) error {
	if part.Config.CloudInit == nil {
		return nil
	}
	userData, err := c.fetchUserData(ctx)
	if err != nil && !c.record.Seeded {
		return fmt.Errorf("its user data: %w", err)
	}
	if err != nil {
		c.event(api.Warning, "ConfigUnavailable", "it starts without its user data: "+err.Error())
	}
	contents, err := c.files(part, vm.NIC, userData)
	if err != nil {
		return err
	}
	seed, err := c.disk(contents)
	if err != nil {
		return fmt.Errorf("make the disk for cloud-init: %w", err)
	}
	files.add(seed)
	vm.Seed = seed
	return nil
}

func (c *cloudInit) fetchUserData(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, seedWait)
	defer cancel()
	config, err := c.config(ctx, c.name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = config.Close() }()
	raw, err := io.ReadAll(io.LimitReader(config, maxUserData+1))
	if err == nil && len(raw) > maxUserData {
		err = fmt.Errorf("more than %d bytes", maxUserData)
	}
	return raw, err
}

// files returns the disk's files by name. All but the user data is JSON, which
// is valid YAML.
func (c *cloudInit) files(part *api.GuestPart, nic *qemu.NIC, userData []byte) (map[string][]byte, error) {
	hostname := c.name
	if d := part.Config.CloudInit.Domain; d != "" {
		hostname += "." + d
	}
	metaData, err := json.Marshal(map[string]string{"instance-id": c.uid, "local-hostname": hostname})
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"meta-data": metaData, "user-data": userData}
	if nic != nil {
		files["network-config"], err = networkConfig(part, nic.MTU)
	}
	return files, err
}

// cloud-init's networking config, version 2.
type (
	networkV2 struct {
		Version   int                 `json:"version"`
		Ethernets map[string]ethernet `json:"ethernets"`
	}
	ethernet struct {
		Match       matchMAC    `json:"match"`
		MTU         int         `json:"mtu"`
		Addresses   []string    `json:"addresses"`
		Routes      []route     `json:"routes"`
		Nameservers nameservers `json:"nameservers"`
	}
	matchMAC struct {
		MAC string `json:"macaddress"`
	}
	route struct {
		To     string `json:"to"`
		Via    string `json:"via"`
		OnLink bool   `json:"on-link"`
	}
	nameservers struct {
		Addresses []string `json:"addresses"`
		Search    []string `json:"search,omitempty"`
	}
)

// The gateways of a Guest, which are the same on every host (overlay).
const (
	gateway4 = "169.254.1.1"
	gateway6 = "fe80::1"
)

// networkConfig says the same as DHCP: one address of each family, alone on its
// link, and the gateway, which is also the DNS server.
func networkConfig(part *api.GuestPart, mtu int) ([]byte, error) {
	e := ethernet{Match: matchMAC{string(part.MAC)}, MTU: mtu}
	for _, a := range part.Addresses {
		e.Addresses = append(e.Addresses, netip.PrefixFrom(a, a.BitLen()).String())
		r := route{To: "0.0.0.0/0", Via: gateway4, OnLink: true}
		if a.Is6() {
			r.To, r.Via = "::/0", gateway6
		} else {
			e.Nameservers.Addresses = []string{gateway4}
		}
		e.Routes = append(e.Routes, r)
	}
	if d := part.Config.CloudInit.Domain; d != "" {
		e.Nameservers.Search = []string{d}
	}
	return json.Marshal(networkV2{Version: 2, Ethernets: map[string]ethernet{"nic0": e}})
}

// disk returns a file in memory with an ISO 9660 file system. Its files are
// collected in the run directory, which is in memory, too.
func (c *cloudInit) disk(contents map[string][]byte) (*os.File, error) {
	work := filepath.Join(c.run, "seed")
	if err := os.RemoveAll(work); err != nil {
		return nil, err
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(work) }()
	for name, content := range contents {
		if err := os.WriteFile(filepath.Join(work, name), content, 0o600); err != nil {
			return nil, err
		}
	}
	fd, err := unix.MemfdCreate("cidata", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	disk := os.NewFile(uintptr(fd), "cidata")
	defer func() { _ = disk.Close() }()
	image, err := iso9660.Create(file.New(disk, false), 0, 0, 0, work)
	if err == nil {
		err = image.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: "cidata"})
	}
	if err != nil {
		return nil, err
	}
	// QEMU refuses to open a read-only disk from a descriptor that is open for
	// writing.
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", disk.Fd()))
}
