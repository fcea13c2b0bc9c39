package bootd

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/httpboot"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/server"
	"github.com/rackweft/rackweft/bootd/tftp"
	"github.com/rackweft/rackweft/bootd/zone"
	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/fallback"
	"github.com/rackweft/rackweft/hardware/fleet"
	"github.com/rackweft/rackweft/hardware/ipmi"
)

// startServers starts DHCP, TFTP, HTTP boot and the API; each channel is closed
// when its server listens.
func (d *daemon) startServers(ctx context.Context, g *errgroup.Group) ([]<-chan struct{}, error) {
	files, err := d.bootFiles()
	if err != nil {
		return nil, err
	}
	tftpAddr, err := listenAddr(d.config.Listen.TFTP)
	if err != nil {
		return nil, err
	}
	httpAddr, err := listenAddr(d.config.Listen.HTTP)
	if err != nil {
		return nil, err
	}
	tftpServer, err := tftp.New(tftp.Config{
		Listen: tftpAddr, Source: heldFiles(d.store, tftp.FS(files)), Known: d.known, Log: d.log, Metrics: d.metrics,
		Observe: func(t tftp.Transfer) {
			if t.Err == nil {
				d.decider.Fetched(ctx, t.Peer.Addr(), t.File)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	httpServer, err := httpboot.New(httpboot.Config{
		Listen: httpAddr, Decider: held{d.decider, d.store}, Assets: assets{d}, Files: files, Known: d.known, Log: d.log, Metrics: d.metrics,
		Observe: func(t httpboot.Transfer) { d.observe(ctx, t) },
	})
	if err != nil {
		return nil, err
	}
	apiServer, err := d.apiServer(files)
	if err != nil {
		return nil, err
	}
	dhcpReady := make(chan struct{})
	g.Go(func() error { return d.dhcpServers().run(ctx, dhcpReady) })
	g.Go(func() error { return tftpServer.Run(ctx) })
	g.Go(func() error { return httpServer.Run(ctx) })
	g.Go(func() error { return apiServer.Run(ctx) })
	return []<-chan struct{}{dhcpReady, tftpServer.Ready(), httpServer.Ready(), apiServer.Listening()}, nil
}

// dhcpServers creates the DHCP servers.
func (d *daemon) dhcpServers() *dhcpServers {
	return &dhcpServers{
		interfaces: d.config.Interfaces, ifaces: d.ifaces, store: d.store, cache: d.cache, decider: d.decider,
		faults: &d.dhcp, served: d.served, metrics: d.metrics, log: d.log,
	}
}

// bootFiles returns the iPXE binaries.
func (d *daemon) bootFiles() (fs.FS, error) {
	if st, err := os.Stat(d.config.IPXE); err != nil || !st.IsDir() {
		return nil, fmt.Errorf("the directory of iPXE binaries %s does not exist: install the package ipxe, or name another with \"ipxe\" in the configuration", d.config.IPXE)
	}
	root, err := os.OpenRoot(d.config.IPXE)
	if err != nil {
		return nil, fmt.Errorf("open the directory of iPXE binaries: %w", err)
	}
	return root.FS(), nil
}

// mediaURL is the URL of the image for a Machine's virtual CD drive.
func (d *daemon) mediaURL(m *api.Machine) (string, error) {
	for _, name := range server.ImageLoaders() {
		if _, err := os.Stat(filepath.Join(d.config.IPXE, name)); err == nil {
			return d.decider.MediaURL(m)
		}
	}
	return "", fmt.Errorf("put GRUB for UEFI into %s, as grubx64.efi or grubaa64.efi", d.config.IPXE)
}

// observe reports complete transfers to the decider.
func (d *daemon) observe(ctx context.Context, t httpboot.Transfer) {
	if !t.Whole() {
		return
	}
	peer := t.Peer.Addr()
	if t.File != "" {
		d.decider.FetchedLoader(ctx, peer, t.File)
		return
	}
	d.decider.FetchedBlob(ctx, peer, api.SHA256(strings.TrimPrefix(t.Digest, "sha256:")))
}

// assets opens the blobs that everyone on the provisioning network may fetch.
type assets struct{ d *daemon }

func (a assets) Asset(_ context.Context, digest string) (httpboot.Asset, error) {
	if err := a.d.store.Holding(); err != nil {
		return httpboot.Asset{}, err
	}
	parsed, err := blob.ParseDigest(digest)
	if err != nil {
		return httpboot.Asset{}, fmt.Errorf("%w: %s", fs.ErrNotExist, err)
	}
	if !a.d.decider.MayFetch(api.SHA256(parsed.Hex())) {
		return httpboot.Asset{}, fmt.Errorf("%w: no Image names blob %s", fs.ErrNotExist, digest)
	}
	f, info, err := a.d.blobs.Get(parsed)
	if err != nil {
		return httpboot.Asset{}, err
	}
	return httpboot.Asset{Content: f, Size: info.Size, ModTime: info.ModTime}, nil
}

// listenAddr parses :port and address:port.
func listenAddr(listen string) (netip.AddrPort, error) {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("listen %q: %w", listen, err)
	}
	p, err := api.ListenPort(listen)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("listen %q: %w", listen, err)
	}
	addr := netip.IPv4Unspecified()
	if host != "" {
		if addr, err = netip.ParseAddr(host); err != nil {
			return netip.AddrPort{}, fmt.Errorf("listen %q: %w", listen, err)
		}
	}
	return netip.AddrPortFrom(addr, uint16(p)), nil
}

// hostOf returns the host of an https URL: a name, or an address.
func hostOf(raw string) (name string, addr netip.Addr, err error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return "", netip.Addr{}, fmt.Errorf("want https://host:8443")
	}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil {
		return "", a, nil
	}
	return u.Hostname(), netip.Addr{}, nil
}

// apiServer returns the HTTP API, over TLS and on the unix socket.
func (d *daemon) apiServer(loaders fs.FS) (*server.Server, error) {
	tokens := make([]server.Token, len(d.config.Tokens))
	for i, t := range d.config.Tokens {
		tokens[i] = server.Token(t)
	}
	return server.New(server.Config{
		Listen: d.config.Listen.API, Known: d.known, Socket: filepath.Join(d.config.RunDir, "bootd.sock"), TLS: d.ca.ServerTLS(), Tokens: tokens,
		Store: d.store, Cache: d.cache, Blobs: d.blobs, Loaders: loaders, Hub: d.hub, Compiler: d.hub.Compiler, Networks: d.nets, Decider: d.decider,
		Zones:  &zone.Views{Cache: d.cache, Parts: d.zones, Sessions: d.hub.BGP},
		Events: d.record.events, Decisions: d.record.decisions, AuditLog: d.record.audit, Audit: d.record.Audit, Console: d.consoles.Attach, ConsoleLines: d.consoles.Lines, Sensors: d.sensors.Of, Present: hardware.Present, Recovery: d.recovery, Backup: d.backupSource().write, Metrics: d.metrics, Registerer: d.metrics, Log: d.log,
	})
}

// connectBMC logs in to a BMC in the protocol that its Machine says.
func (d *daemon) connectBMC(ctx context.Context, e hardware.Endpoint) (hardware.Service, error) {
	switch {
	case e.Protocol == api.ProtocolIPMI:
		return d.connectIPMI(ctx, e)
	case e.Fallback == api.ProtocolIPMI:
		s, err := fallback.New(ctx, e, d.connectRedfish, d.connectIPMI, d.log)
		if err != nil {
			return nil, err // a nil *fallback.Service is not a nil hardware.Service
		}
		return s, nil
	}
	return d.connectRedfish(ctx, e)
}

func (d *daemon) connectRedfish(ctx context.Context, e hardware.Endpoint) (hardware.Service, error) {
	s, err := d.bmcs.Connect(ctx, e, d.log)
	if err != nil {
		return nil, err // a nil *redfish.Service is not a nil hardware.Service
	}
	return s, nil
}

func (d *daemon) connectIPMI(ctx context.Context, e hardware.Endpoint) (hardware.Service, error) {
	s, err := ipmi.Connect(ctx, e, d.log)
	if err != nil {
		return nil, err // a nil *ipmi.Service is not a nil hardware.Service
	}
	return s, nil
}

// openConsole opens a Machine's serial console through its BMC.
func (d *daemon) openConsole(ctx context.Context, m *api.Machine, price fleet.Price) (*hardware.Console, error) {
	endpoint, err := machine.Endpoint(ctx, d.store, d.cache, m)
	if err != nil {
		return nil, err
	}
	opened, err := d.fleet.Console(ctx, endpoint, price)
	return opened, machine.TrustAdvice(m, err)
}
