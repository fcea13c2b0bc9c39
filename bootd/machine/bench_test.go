package machine

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

// fakeBMC takes the place of a BMC: the real ones are hardware's to test.
type fakeBMC struct {
	power     hardware.PowerState
	did       []string
	dialErr   error
	dials     int
	endpoint  hardware.Endpoint
	lastReset time.Time // zero: unknown
	post      string
	lightErr  error // of the locator light
	bootErr   error // of every boot override
	httpErr   error // of one for HTTP boot
	resetErr  error // of every reset, which is not carried out

	ignoresButton bool
	health        hardware.Health
	cpus          int   // that the inventory has
	inventoryErr  error // of reading it

	tag   string
	caErr error // of a CA
	// Of an image: one whose server is to be checked, and any.
	mediaCAErr, mediaErr error
	ejectErr             error
	tagErr               error  // of every write of the tag
	taken                bool   // writes that fail have been carried out all the same
	read                 func() // what happens while the tag is read
}

func (b *fakeBMC) PowerState(context.Context) (hardware.PowerState, error) { return b.power, nil }
func (b *fakeBMC) PowerOn(context.Context) error {
	b.power, b.lastReset = hardware.PowerOn, time.Now()
	b.did = append(b.did, "on")
	return nil
}
func (b *fakeBMC) PowerOff(context.Context) error {
	b.power = hardware.PowerOff
	b.did = append(b.did, "off")
	return nil
}
func (b *fakeBMC) GracefulShutdown(context.Context) error {
	b.did = append(b.did, "shutdown")
	if !b.ignoresButton {
		b.power = hardware.PowerOff
	}
	return nil
}
func (b *fakeBMC) ForceRestart(context.Context) error {
	b.did = append(b.did, "reset")
	if b.resetErr == nil {
		b.lastReset = time.Now()
	}
	return b.resetErr
}
func (b *fakeBMC) SetBootOnce(_ context.Context, boot hardware.Boot) error {
	if boot.Target == hardware.BootHTTP && b.httpErr != nil {
		return b.httpErr
	}
	b.did = append(b.did, strings.TrimSpace("boot "+string(boot.Target)+" "+string(boot.Mode)+boot.HTTPURL))
	if errors.Is(b.bootErr, hardware.ErrModeUntold) && boot.Mode == "" {
		return nil
	}
	return b.bootErr
}
func (b *fakeBMC) Inventory(context.Context) (hardware.Inventory, error) {
	return hardware.Inventory{Manufacturer: "Acme", Serial: "S1", CPUs: hardware.CPUs{Count: b.cpus}, NICs: []hardware.NIC{{MAC: "52:54:00:01:01:00"}}}, b.inventoryErr
}
func (b *fakeBMC) Health(context.Context) (hardware.Health, error) { return b.health, nil }
func (b *fakeBMC) LastReset(context.Context) (hardware.ResetEvidence, error) {
	e := hardware.ResetEvidence{Known: !b.lastReset.IsZero(), At: b.lastReset, Now: time.Now(), POST: b.post}
	if e.Known {
		e.Told = []hardware.Trace{{Source: "LastResetTime", Value: b.lastReset.UTC().Format(time.RFC3339)}}
	}
	return e, nil
}
func (b *fakeBMC) Identify(_ context.Context, on bool) error {
	b.did = append(b.did, fmt.Sprint("identify ", on))
	return b.lightErr
}
func (b *fakeBMC) ResetBMC(context.Context) error {
	b.did = append(b.did, "reset BMC")
	return nil
}
func (b *fakeBMC) AssetTag(context.Context) (string, error) {
	if b.read != nil {
		b.read()
	}
	return b.tag, nil
}
func (b *fakeBMC) SetAssetTag(_ context.Context, tag string) error {
	b.did = append(b.did, "tag "+tag)
	if b.tagErr == nil || b.taken {
		b.tag = tag
	}
	return b.tagErr
}
func (b *fakeBMC) TrustAtBoot(_ context.Context, ca *x509.Certificate) error {
	b.did = append(b.did, "trust "+ca.Subject.CommonName)
	return b.caErr
}
func (b *fakeBMC) InsertMedia(_ context.Context, media hardware.Media) error {
	did := "insert " + media.Image
	if media.CA != nil {
		if b.mediaCAErr != nil {
			return b.mediaCAErr
		}
		did += " checked"
	}
	b.did = append(b.did, did)
	return b.mediaErr
}
func (b *fakeBMC) EjectMedia(_ context.Context, image string) error {
	b.did = append(b.did, "eject "+image)
	return b.ejectErr
}
func (b *fakeBMC) Fingerprint() string { return "sha256:" + strings.Repeat("ab", 32) }

type events struct{ list []string }

func (e *events) Event(o api.Object, typ api.EventType, reason, message string) {
	e.list = append(e.list, reason+": "+message)
}
func (e *events) Decision(api.Decision) {}

// bench is one Site in a real store, with a BMC behind every Machine.
type bench struct {
	t                   *testing.T
	store               *store.Store
	cache               *store.Cache
	bmc                 *fakeBMC
	events              *events
	c                   *Controller
	said                string // on the console, last
	urlErr, mediaURLErr error
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	keys, err := ca.LoadKeyring(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), store.Config{Dir: dir}, keys, log)
	if err != nil {
		t.Fatal(err)
	}
	cache := store.NewCache(s, log)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = cache.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = s.Close() })
	<-cache.Synced()
	b := &bench{t: t, store: s, cache: cache, bmc: &fakeBMC{power: hardware.PowerOff}, events: &events{}}
	b.restart()
	b.create(&api.Site{Base: named("site")})
	b.create(&api.Zone{Base: named("yellow"), Spec: api.ZoneSpec{ASN: 64601}})
	b.create(&api.Secret{Base: named("bmc"), Spec: api.SecretSpec{Data: map[string]string{"username": "admin", "password": "secret-1"}}})
	img := &api.Image{Base: named("img"), Spec: api.ImageSpec{Version: "1", Files: map[string]api.ImageFile{"kernel": {SHA256: api.SHA256(strings.Repeat("a", 64))}}}}
	img.Status.Conditions.Set(time.Now(), "Ready", api.True, "Complete", "")
	b.create(img)
	b.create(&api.Profile{Base: named("worker"), Spec: api.ProfileSpec{Image: "img"}})
	return b
}

// restart forgets all that the controller has in memory, as a killed bootd does.
func (b *bench) restart() {
	b.c = &Controller{
		Env:      control.Env{Store: b.store, Cache: b.cache, Event: b.events.Event, Log: slog.New(slog.DiscardHandler)},
		Decision: b.events.Decision,
		Sensors:  new(Sensors),
		Said:     func(*api.Machine) string { return b.said },
		BootURL:  func(m *api.Machine) (string, error) { return "https://bootd/" + m.Status.Attempt.ID, b.urlErr },
		MediaURL: func(m *api.Machine) (string, error) {
			return "https://bootd/" + m.Status.Attempt.ID + "/boot.iso", b.mediaURLErr
		},
		CA:    &x509.Certificate{Subject: pkix.Name{CommonName: "Site"}},
		Nonce: func(_, attempt string) string { return "nonce-" + attempt },
		Use: func(ctx context.Context, e hardware.Endpoint, _ string, call func(context.Context, BMC) error) error {
			b.bmc.dials++
			b.bmc.endpoint = e
			if b.bmc.dialErr != nil {
				return b.bmc.dialErr
			}
			return call(ctx, b.bmc)
		}}
	b.c.holds.reset()
}

func named(name string) api.Base { return api.Base{Metadata: api.Metadata{Name: name}} }

func (b *bench) create(o api.Object) {
	b.t.Helper()
	o.SetDefaults()
	if err := b.store.Create(b.t.Context(), o); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) machine(name string, unit int) *api.Machine {
	m := &api.Machine{Base: named(name), Spec: api.MachineSpec{
		Zone: "yellow", Profile: "worker", Location: api.Location{Rack: "r1", Unit: unit},
		Links: []api.Link{{Name: "pxe0", MAC: api.MAC(fmt.Sprintf("52:54:00:01:%02x:00", unit))}},
		BMC:   &api.BMC{Address: fmt.Sprintf("https://198.18.1.%d", unit), Credentials: "bmc"},
	}}
	b.create(m)
	return m
}

// step brings the cache up to date and reconciles once.
func (b *bench) step(name string) *api.Machine {
	b.t.Helper()
	b.sync()
	b.reconcile(name)
	return b.get(name)
}

// reconcile takes one step with the Machine as the cache has it.
func (b *bench) reconcile(name string) {
	b.t.Helper()
	m, ok := store.Cached[api.Machine](b.cache, name)
	if !ok {
		return
	}
	if _, err := b.c.step(b.t.Context(), m); err != nil {
		b.t.Fatal(err)
	}
}

// reading reads what is due beside the Machine's life, and gives when the next is.
func (b *bench) reading(name string) (*api.Machine, time.Duration) {
	b.t.Helper()
	b.sync()
	m, ok := store.Cached[api.Machine](b.cache, name)
	if !ok {
		b.t.Fatalf("no Machine %s", name)
	}
	again, err := b.c.reading(b.t.Context(), m)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.get(name), again
}

func (b *bench) sync() {
	b.t.Helper()
	_, rev, err := store.List[api.Machine](b.t.Context(), b.store)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.cache.WaitRevision(b.t.Context(), rev); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) get(name string) *api.Machine {
	b.t.Helper()
	m, err := store.Get[api.Machine](b.t.Context(), b.store, name)
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}

func (b *bench) mutate(name string, fn func(*api.Machine)) {
	b.t.Helper()
	_, err := store.Mutate(b.t.Context(), b.store, name, func(m *api.Machine) error { fn(m); return nil })
	if err != nil {
		b.t.Fatal(err)
	}
}

// alter changes an object of any kind, as a person does.
func alter[T any, P interface {
	*T
	api.Object
}](b *bench, name string, fn func(P)) {
	b.t.Helper()
	if _, err := store.Mutate(b.t.Context(), b.store, name, func(o P) error { fn(o); return nil }); err != nil {
		b.t.Fatal(err)
	}
}

// steps reconciles until nothing changes any more. With killed, the controller
// is a new one before every step.
func (b *bench) steps(name string, killed bool) *api.Machine {
	b.t.Helper()
	for range 30 {
		before := b.get(name).Metadata.ResourceVersion
		if killed {
			b.restart()
		}
		m := b.step(name)
		if m.Metadata.ResourceVersion == before {
			return m
		}
	}
	b.t.Fatal("it does not settle")
	return nil
}

func (b *bench) advance(name string, stages ...api.Stage) {
	for _, s := range stages {
		b.mutate(name, func(m *api.Machine) { Advance(m, m.Status.Attempt.ID, s, time.Now(), time.Hour) })
	}
}

func (b *bench) applied(name string) {
	b.mutate(name, func(m *api.Machine) {
		m.Status.Host = &api.HostStatus{AttemptID: m.Status.Attempt.ID}
		m.Status.Conditions.Set(time.Now(), api.CondConnected, api.True, "Connected", "")
		m.Status.Conditions.Set(time.Now(), api.CondApplied, api.True, "Applied", "")
	})
}

func (b *bench) disconnected(name string) {
	b.mutate(name, func(m *api.Machine) {
		m.Status.Conditions.Set(time.Now(), api.CondConnected, api.False, "Disconnected", "")
		m.Status.BootAsked = time.Now()
	})
}

// request adds a request as the API does.
func (b *bench) request(name string, r api.Request) (out api.Request, err error) {
	_, merr := store.Mutate(b.t.Context(), b.store, name, func(m *api.Machine) error {
		out, err = AddRequest(m, r)
		return err
	})
	return out, errors.Join(err, merr)
}
