package bootd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/boot"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/console"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/hostspec"
	"github.com/rackweft/rackweft/bootd/image"
	"github.com/rackweft/rackweft/bootd/lease"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/recovery"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/subnet"
	"github.com/rackweft/rackweft/bootd/zone"
	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/fleet"
	"github.com/rackweft/rackweft/hardware/redfish"
	"github.com/rackweft/rackweft/internal/prom"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/systemd"
)

// daemon holds everything that is open while bootd runs.
type daemon struct {
	config  Config
	log     *slog.Logger
	metrics *prometheus.Registry
	notify  *systemd.Notifier

	keyring *ca.Keyring
	ca      *ca.Authority
	store   *store.Store
	cache   *store.Cache
	nets    *network.Index
	zones   *zone.Parts
	blobs   *blob.Store
	allow   []image.Allowed // where Images may be fetched from
	record  *recorder
	leases  *lease.Table
	ifaces  *interfaces

	bmcs     redfish.Known // what was found out about BMCs
	fleet    *fleet.Fleet  // those in use
	consoles *console.Keeper
	sensors  machine.Sensors
	tracker  *machine.Tracker
	decider  *boot.Decider
	subnets  *subnet.Service
	hub      *hostspec.Hub
	recovery *recovery.Keeper
	dhcp     dhcpFaults
	pinned   pinned
	served   wait.Signal // the served Subnets changed
}

// Run runs bootd until ctx ends or a part of it fails. A bootd that serves a copy of the store, because its own
// cannot be written, restarts when it can be.
func Run(ctx context.Context, config Config, log *slog.Logger) error {
	log = slog.New(terse{log.Handler()})
	for {
		err := run(ctx, config, log)
		switch {
		case ctx.Err() != nil:
			return err
		case errors.Is(err, errRoom):
			log.Info("bootd begins again", "reason", errRoom)
		case errors.Is(err, store.ErrNotHolder):
			log.Error("another bootd may serve the Site: this one has stopped serving it", "reason", err)
		case errors.Is(err, errChoking):
			log.Error("bootd restarts, with a copy of its store", "reason", errChoking)
		default:
			return err
		}
	}
}

func run(ctx context.Context, config Config, log *slog.Logger) (err error) {
	d := &daemon{config: config, log: log, metrics: prometheus.NewRegistry(), notify: systemd.NewNotifier(log), ifaces: &interfaces{}, served: wait.NewSignal()}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.open(ctx); err != nil {
		return err
	}
	return d.serve(ctx)
}

// open opens the state on disk, in the order of dependencies.
func (d *daemon) open(ctx context.Context) error {
	for _, dir := range []string{d.config.StateDir, d.config.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create bootd's directory: %w (choose others with --state-dir and --run-dir)", err)
		}
	}
	if _, err := d.ifaces.read(); err != nil {
		return fmt.Errorf("read the interfaces: %w", err)
	}
	if err := d.restoring(ctx); err != nil {
		return err
	}
	var err error
	if err := d.openSite(ctx); err != nil {
		return err
	}
	if err := tolerate(d.log, "store bootd's certificate", d.certify()); err != nil {
		return err
	}
	if err := tolerate(d.log, "write the administrator's certificate", d.writeAdmin()); err != nil {
		return err
	}
	reserve := d.config.Reserve.Value()
	if d.blobs, err = blob.Open(filepath.Join(d.config.StateDir, "blobs"), blob.Options{Reserve: reserve, Log: d.log.With("component", "blobs")}); err != nil {
		return err
	}
	if d.record, err = openRecorder(filepath.Join(d.config.StateDir, "journal"), d.log); err != nil {
		return err
	}
	d.cache = store.NewCache(d.store, d.log)
	registered := func(mac string) bool { _, ok := store.RegisteredByMAC(d.cache, api.MAC(mac)); return ok }
	if d.leases, err = lease.New(ctx, store.NewLeaseBackend(d.store), time.Now, registered); err != nil {
		return err
	}
	d.nets = network.NewIndex(d.store, d.log)
	return d.build(ctx)
}

// storeConfig returns the configuration of the store.
func (c Config) storeConfig() store.Config {
	s := c.Store
	return store.Config{Dir: c.StateDir, Scratch: c.RunDir, Endpoints: s.Endpoints, CAFile: s.CA, CertFile: s.Cert, KeyFile: s.Key}
}

// certify ensures that the server certificate names every address by which bootd may be reached.
func (d *daemon) certify() error {
	names := []string{"localhost"}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	var addrs []netip.Addr
	for _, prefixes := range d.ifaces.get() {
		for _, p := range prefixes {
			addrs = append(addrs, p.Addr())
		}
	}
	for _, u := range d.config.Advertise {
		name, addr, err := hostOf(u)
		if err != nil {
			return fmt.Errorf("advertise %q: %w", u, err)
		}
		if addr.IsValid() {
			addrs = append(addrs, addr)
		} else {
			names = append(names, name)
		}
	}
	_, err := d.ca.EnsureServer(names, addrs)
	return err
}

// build connects the parts; nothing runs yet.
func (d *daemon) build(ctx context.Context) error {
	agent, err := d.importAgent(ctx)
	if err != nil {
		return err
	}
	if d.allow, err = image.ParseAllow(d.config.Images.Allow); err != nil {
		return fmt.Errorf("images.allow: %w", err)
	}
	httpPort, err := api.ListenPort(d.config.Listen.HTTP)
	if err != nil {
		return err
	}
	apiPort, err := api.ListenPort(d.config.Listen.API)
	if err != nil {
		return err
	}
	if _, err := prom.Register(d.metrics, d.record.metrics(), damagedBlobs(d.blobs), &d.sensors); err != nil {
		return fmt.Errorf("register the metrics of journals, blobs and sensors: %w", err)
	}
	d.fleet = fleet.New(d.connectBMC, d.log)
	d.consoles = console.New(console.Config{
		Cache: d.cache, Open: d.openConsole, Event: d.record.Event, Log: d.log,
		Learned: func(ctx context.Context, m *api.Machine, kind api.ConsoleKind, hostKey api.HostKey) error {
			return machine.LearnConsole(ctx, control.Env{Store: d.store, Cache: d.cache, Event: d.record.Event, Log: d.log}, m, kind, hostKey)
		},
	})
	d.tracker = &machine.Tracker{Store: d.store, Cache: d.cache}
	epoch, err := d.epoch(ctx)
	if err != nil {
		return err
	}
	d.decider, err = boot.New(boot.Config{
		Store: d.store, Cache: d.cache, Leases: d.leases, Tracker: d.tracker,
		CA: d.ca, Tokens: ca.NewTokens(d.keyring), Record: d.record, Epoch: epoch,
		HTTPPort: httpPort, APIPort: apiPort, Advertise: d.config.Advertise,
		Agent: agent, Interfaces: d.ifaces.get, Neighbour: neighbour, Source: source, Metrics: d.metrics, Log: d.log,
	})
	if err != nil {
		return err
	}
	d.subnets = &subnet.Service{Cache: d.cache, Serve: d.decider.ApplySubnets, Reserves: boot.ReservesOther, Served: d.served, Log: d.log}
	sessions, err := d.sessionKeys(ctx)
	if err != nil {
		return err
	}
	d.zones = &zone.Parts{Cache: d.cache, Networks: d.nets, Keys: &zone.Keys{
		Key: sessions.Key, Secret: func(ctx context.Context, name string, use api.SecretUse) (map[string]string, error) {
			return store.OpenSecret(ctx, d.store, name, use)
		},
	}}
	name, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("this machine's name: %w", err)
	}
	d.recovery = &recovery.Keeper{Store: d.store, Cache: d.cache, Lease: d.keepLease, Event: d.record.Event, Log: d.log}
	d.hub = &hostspec.Hub{
		Name: name, Store: d.store, Cache: d.cache, Signer: renewer{d.ca}, Record: d.record, Recovery: d.recovery, Log: d.log,
		Compiler: &hostspec.Compiler{Cache: d.cache, Parts: d.parts, Epoch: epoch, API: d.decider.APIFor},
	}
	return nil
}

// importAgent imports the nodeagent binary into the blobs, so that hosts can fetch it by digest.
func (d *daemon) importAgent(ctx context.Context) (boot.Agent, error) {
	unit, err := systemd.Unit("nodeagent.service")
	if err != nil {
		return boot.Agent{}, err
	}
	speaker, err := systemd.Unit("nodeagent-speaker.service")
	if err != nil {
		return boot.Agent{}, err
	}
	f, err := os.Open(d.config.Nodeagent)
	if err != nil {
		return boot.Agent{}, fmt.Errorf("open nodeagent, which hosts install: %w (name it with \"nodeagent\" in the configuration)", err)
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return boot.Agent{}, fmt.Errorf("read nodeagent: %w", err)
	}
	agent := boot.Agent{Digest: api.SHA256(hex.EncodeToString(sum.Sum(nil))), Unit: unit, Speaker: speaker}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return boot.Agent{}, fmt.Errorf("read nodeagent: %w", err)
	}
	// One that is held already is not written again: a full disk must not keep
	// bootd from starting.
	if _, _, err := d.blobs.Put(ctx, f, blob.Digest("sha256:"+string(agent.Digest))); err != nil {
		err = fmt.Errorf("import nodeagent: %w", err)
		return agent, tolerate(d.log, "imported nodeagent for the hosts", err)
	}
	return agent, nil
}

// epoch returns the store's epoch, which is stored next to the objects: a restore raises it.
func (d *daemon) epoch(ctx context.Context) (int64, error) {
	epoch, err := readEpoch(ctx, d.store)
	if err != nil || epoch > 0 {
		return epoch, err
	}
	return 1, tolerate(d.log, "write the epoch", writeEpoch(ctx, d.store, 1))
}

// readEpoch returns a store's epoch; 0 when it has none yet.
func readEpoch(ctx context.Context, s *store.Store) (int64, error) {
	raw, err := s.Raw.Get(ctx, "epoch")
	if err != nil || len(raw) == 0 {
		return 0, err
	}
	epoch, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil || epoch < 1 {
		return 0, fmt.Errorf("invalid epoch %q in the store: want a number above 0", raw)
	}
	return epoch, nil
}

func writeEpoch(ctx context.Context, s *store.Store, epoch int64) error {
	return s.Raw.Put(ctx, "epoch", strconv.AppendInt(nil, epoch, 10))
}

// sessionKeys opens the Site's key for BGP sessions, and creates it the first time. It is sealed again with a new
// seal key, so that the old one can be removed.
func (d *daemon) sessionKeys(ctx context.Context) (*ca.SessionKeys, error) {
	const name = sessionKey
	sealed, err := d.store.Raw.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	if sealed == nil {
		fresh, err := ca.NewSessionKey(d.keyring)
		if err != nil {
			return nil, err
		}
		if sealed, err = d.store.Raw.Create(ctx, name, fresh); err != nil { // another bootd may have been faster
			return nil, err
		}
	}
	keys, again, err := ca.OpenSessionKeys(d.keyring, sealed)
	if errors.Is(err, ca.ErrUnknownKey) {
		return nil, d.config.place().fault(partSealKey, err.Error())
	}
	if err != nil || again == nil {
		return keys, err
	}
	return keys, tolerate(d.log, "seal the key for BGP sessions with the new seal key", d.store.Raw.Put(ctx, name, again))
}

// renewer signs new certificates for hosts that hold their stream.
type renewer struct{ ca *ca.Authority }

func (r renewer) Renew(csr []byte, name, uid string) (cert []byte, key string, err error) {
	if key, err = ca.RequestKey(csr); err != nil {
		return nil, "", err
	}
	cert, err = r.ca.SignHost(csr, name, uid, boot.HostCertificate)
	return cert, key, err
}

// serve runs every part until ctx ends or one fails.
func (d *daemon) serve(ctx context.Context) error {
	g, running := errgroup.WithContext(ctx)
	g.Go(func() error { return d.cache.Run(running) })
	g.Go(func() error { return d.nets.Run(running) })
	g.Go(func() error { return d.store.KeepHold(running) })
	g.Go(func() error { return d.start(running, g) })
	err := g.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// start starts everything that needs a filled cache. HostSpecs that are compiled without the leases would orphan
// every Network.
func (d *daemon) start(ctx context.Context, g *errgroup.Group) error {
	for _, synced := range []<-chan struct{}{d.cache.Synced(), d.nets.Synced()} {
		select {
		case <-synced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := d.ensureSite(ctx); err != nil {
		return err
	}
	if err := d.decider.ApplySubnets(ctx); err != nil {
		return err
	}
	ready, err := d.startServers(ctx, g)
	if err != nil {
		return err
	}
	g.Go(func() error { return d.hub.Run(ctx) })
	g.Go(func() error { return d.subnets.Run(ctx) })
	g.Go(func() error { return d.pinned.follow(ctx, d.cache) })
	g.Go(func() error { return d.ifaces.run(ctx, d.log, func() { d.addressesChanged(ctx) }) })
	g.Go(func() error { return d.followRoom(ctx) })
	g.Go(func() error { return d.blobs.Scrub(ctx) })
	if d.store.Stale() == nil { // controllers write, and power what they cannot write down
		g.Go(func() error { return d.lead(ctx) })
	}
	flannelds := &flannelds{
		listen: d.config.Store.FlannelListen, dir: d.config.StateDir, ca: d.ca, store: d.store, cache: d.cache, known: d.known, log: d.log,
	}
	g.Go(func() error { return flannelds.serve(ctx) })
	g.Go(func() error { return flannelds.follow(ctx) })
	g.Go(func() error { return d.ready(ctx, ready) })
	g.Go(func() error { d.notify.Watchdog(ctx, d.answers); return nil })
	return nil
}

// answers takes the locks that everything else needs: if one is stuck, bootd hangs, and systemd restarts it.
func (d *daemon) answers() bool {
	return d.cache.Revision() >= 0 && d.hub.Count() >= 0
}

// lead runs the controllers while this bootd is elected.
func (d *daemon) lead(ctx context.Context) error {
	host, _ := os.Hostname()
	id := fmt.Sprintf("%s/%d", host, os.Getpid())
	return d.store.Elect(ctx, "controllers", id, func(ctx context.Context) error {
		d.log.Info("elected: running the controllers")
		// A BMC's command cannot be undone: it is not sent after the leadership is lost.
		leading := ctx
		ctx = hardware.WithPermit(ctx, func() error { return store.CheckLead(leading) })
		env := control.Env{Store: d.store, Cache: d.cache, Event: d.record.Event, Log: d.log}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return d.recovery.Run(ctx) })
		g.Go(func() error { return d.consoles.Run(ctx) })
		for _, k := range d.kinds() {
			if k.control == nil {
				continue
			}
			c := k.control(env)
			g.Go(func() error { return c.Run(ctx) })
		}
		return g.Wait()
	})
}

// ensureSite creates the Site on the first start, so that its defaults can be read and edited.
func (d *daemon) ensureSite(ctx context.Context) error {
	if _, ok := store.Cached[api.Site](d.cache, api.SiteName); ok {
		return nil
	}
	s := new(api.Site)
	s.Metadata.Name = api.SiteName
	s.SetDefaults()
	if err := d.store.Create(ctx, s); err != nil && !errors.Is(err, store.ErrExists) {
		return tolerate(d.log, "create the Site", err)
	}
	return nil
}

// addressesChanged is called when an interface or address came or went.
func (d *daemon) addressesChanged(ctx context.Context) {
	if err := d.certify(); err != nil {
		d.log.Error("certify the new addresses", "error", err)
	}
	d.subnets.Apply(ctx)
}

// ready tells systemd once every server listens.
func (d *daemon) ready(ctx context.Context, servers []<-chan struct{}) error {
	for _, s := range servers {
		select {
		case <-s:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	d.log.Info("ready", "version", d.config.Version, "api", d.config.Listen.API, "http", d.config.Listen.HTTP, "tftp", d.config.Listen.TFTP)
	d.notify.Ready()
	<-ctx.Done()
	d.notify.Stopping()
	return ctx.Err()
}

// close closes what is open, in the reverse order.
func (d *daemon) close() error {
	if d.consoles != nil {
		d.consoles.Close()
	}
	if d.fleet != nil {
		d.fleet.Close()
	}
	var errs []error
	if d.record != nil {
		errs = append(errs, d.record.close())
	}
	if d.blobs != nil {
		errs = append(errs, d.blobs.Close())
	}
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	return errors.Join(errs...)
}
