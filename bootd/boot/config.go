package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
	"github.com/rackweft/rackweft/ignition"
)

// Where nodeagent's files are on a host.
const (
	agentPath  = "/opt/rackweft/bin/nodeagent"
	configPath = "/etc/rackweft/nodeagent.yaml"
	tokenPath  = "/etc/rackweft/join-token"
)

// ConfigRequest is Ignition's second fetch.
type ConfigRequest struct {
	Machine, Key string // from the URL
	Token        string
	Accept       string // the HTTP header
	Peer         netip.Addr
	Conn         string // names the connection
}

// HostConfig is a Machine's whole config.
type HostConfig struct {
	Body        []byte
	ContentType string
	// Sent is to be called once, when the response was written: whether anything
	// of it has arrived, or may have.
	Sent func(arrived bool)
}

// ConfigFor answers Ignition's second fetch, over TLS: the whole config,
// against the token of this BootAttempt, to one client once. Errors are
// *api.Problem: 503 where waiting may help (Ignition asks for ever), 403 where
// it cannot (the boot fails).
func (d *Decider) ConfigFor(ctx context.Context, r ConfigRequest) (HostConfig, error) {
	m, chain, err := d.mayHaveConfig(ctx, r)
	if err != nil {
		return HostConfig{}, err
	}
	v := d.proved(m, r.Peer, trust.Config, chain)
	if !v.OK() {
		d.notReached(ctx, m, v)
		return HostConfig{}, d.refuse(m, r.Peer, theConfig, http.StatusServiceUnavailable, v.Missing, v.Missing)
	}
	result, err := d.compile(ctx, m, r.Peer, r.Accept)
	d.compiled(ctx, m, err)
	if err != nil {
		return HostConfig{}, d.refuse(m, r.Peer, theConfig, http.StatusServiceUnavailable, err.Error(), err.Error())
	}
	sent, why := d.give(ctx, m, giving{what: theConfig, stage: api.StageConfig, peer: r.Peer, conn: r.Conn, verdict: v})
	if why != "" {
		d.metrics.refusals.WithLabelValues(theConfig).Inc()
		return HostConfig{}, problem(http.StatusServiceUnavailable, why)
	}
	d.decide(m, "", r.Peer, theConfig, "served", fmt.Sprintf("token of BootAttempt %d, Ignition %s", m.Status.Attempt.Number, result.Version))
	return HostConfig{Body: result.Config, ContentType: contentType(result.Version), Sent: sent}, nil
}

// mayHaveConfig finds the Machine whose config a request may have, as far as
// that follows from who asks.
func (d *Decider) mayHaveConfig(ctx context.Context, r ConfigRequest) (*api.Machine, api.TrustLevel, error) {
	m, chain, reason, err := d.bearer(ctx, r.Machine, r.Token, ca.PurposeConfig)
	if err != nil {
		return nil, "", err
	}
	if reason == "" && !d.Tokens.Verify(r.Key, ca.PurposeConfigURL.At(string(chain)), m.Metadata.UID, m.Status.Attempt.ID) {
		reason = "the URL is not this BootAttempt's"
	}
	if reason != "" {
		if m != nil && d.late(m, d.taker(theConfig, r.Peer), r.Token, ca.PurposeConfig) {
			return nil, "", problem(http.StatusForbidden, strangerText(r.Machine))
		}
		return nil, "", d.refuse(m, r.Peer, theConfig, http.StatusForbidden, reason, strangerText(r.Machine))
	}
	if err := d.belongs(r.Peer, m); err != nil {
		return nil, "", d.refuse(m, r.Peer, theConfig, http.StatusForbidden, err.Error(), err.Error())
	}
	return m, chain, nil
}

func problem(status int, detail string) error {
	return &api.Problem{Status: status, Title: http.StatusText(status), Detail: detail}
}

// strangerText is all that a caller without the right token is told: the rest
// is for the people who may read the records.
func strangerText(name string) string {
	return fmt.Sprintf("the token is not valid here and now; \"weftctl explain machine %s\" tells why", name)
}

// bearer finds the Machine whose open BootAttempt the secret is of, and the level
// at which it was given, or says what is wrong with it. A refusal is final for
// the machine that asks, and the cache may be a moment behind, so it is made on
// what the store says.
func (d *Decider) bearer(ctx context.Context, name, secret string, purpose ca.Purpose) (m *api.Machine, level api.TrustLevel, reason string, err error) {
	if err := api.ValidateName(name); err != nil {
		return nil, "", "what it calls itself is no Machine's name", nil // not repeated: it may be anything, a token too
	}
	if m, ok := store.Cached[api.Machine](d.Cache, name); ok {
		if level, reason := d.fit(m, secret, purpose); reason == "" {
			return m, level, "", nil
		}
	}
	m, err = store.Get[api.Machine](ctx, d.Store, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, "", fmt.Sprintf("no Machine is called %q", name), nil
	}
	if err != nil {
		return nil, "", "", fmt.Errorf("read Machine %s: %w", name, err)
	}
	level, reason = d.fit(m, secret, purpose)
	return m, level, reason, nil
}

// fit is the level at which a secret of the Machine's open attempt was given, or
// the reason why it was not given in that attempt.
func (d *Decider) fit(m *api.Machine, secret string, purpose ca.Purpose) (level api.TrustLevel, reason string) {
	if !current(m) {
		return "", "no BootAttempt is open, or its window is over: reprovision the Machine"
	}
	uid, attempt := m.Metadata.UID, m.Status.Attempt.ID
	level, ok := d.presented(secret, purpose, uid, attempt)
	if !ok {
		return "", "the token is not this BootAttempt's"
	}
	return level, ""
}

// compiled writes into a condition why the config cannot be compiled, and that
// it can again.
func (d *Decider) compiled(ctx context.Context, m *api.Machine, fault error) {
	old := m.Status.Conditions.Get(machine.CondConfig)
	if fault == nil && (old == nil || old.Status == api.True) {
		return
	}
	status, reason, message := api.True, "Compiled", "its config compiles"
	if fault != nil {
		status, reason, message = api.False, "CompileFailed", fault.Error()
	}
	_, err := store.Mutate(ctx, d.Store, m.Metadata.Name, func(fresh *api.Machine) error {
		if fresh.Metadata.UID != m.Metadata.UID || !fresh.Status.Conditions.Set(time.Now(), machine.CondConfig, status, reason, message) {
			return store.ErrUnchanged
		}
		return nil
	})
	if err != nil {
		d.Log.Warn("record whether a config compiles", "machine", m.Metadata.Name, "error", err)
	}
}

func (d *Decider) compile(ctx context.Context, m *api.Machine, peer netip.Addr, accept string) (ignition.Result, error) {
	p, img, err := d.profile(m)
	if err != nil {
		return ignition.Result{}, err
	}
	version, err := ignition.NegotiateVersion(accept, img.Spec.IgnitionVersion)
	if err != nil {
		return ignition.Result{}, err
	}
	server, err := d.serverFor(peer)
	if err != nil {
		return ignition.Result{}, err
	}
	system, err := d.system(m, img, server)
	if err != nil {
		return ignition.Result{}, err
	}
	layers, err := d.layers(p)
	if err != nil {
		return ignition.Result{}, err
	}
	return ignition.Compile(ignition.Input{
		Layers: layers, Facts: d.facts(m, p, img), Secret: d.secrets(ctx), System: system, Version: version,
	})
}

// Origins tells which Layer each part of the Machine's config comes from, as
// far as it can be compiled now.
func (d *Decider) Origins(m *api.Machine) ([]api.Origin, []string, error) {
	p, img, err := d.profile(m)
	if err != nil {
		return nil, nil, err
	}
	layers, err := d.layers(p)
	if err != nil {
		return nil, nil, err
	}
	r, err := ignition.Compile(ignition.Input{Layers: layers, Facts: d.facts(m, p, img), Secret: d.masked, Version: img.Spec.IgnitionVersion})
	if err != nil {
		return nil, nil, err
	}
	var origins []api.Origin
	for _, o := range r.Provenance {
		origins = append(origins, api.Origin{Path: o.Path, Layer: o.Layer, Overrides: o.Overrides})
	}
	return origins, r.Warnings, nil
}

// masked answers as the Secrets would, without a value.
func (d *Decider) masked(layer, name, key string) (string, error) {
	s, ok := store.Cached[api.Secret](d.Cache, name)
	if !ok {
		return "", fmt.Errorf("no Secret is called %q", name)
	}
	if err := s.Permits(api.UseLayer(layer)); err != nil {
		return "", err
	}
	if _, ok := s.Status.Digests[key]; !ok {
		return "", fmt.Errorf("the Secret %s has no key %q", name, key)
	}
	return "masked-" + name + "-" + key, nil
}

func (d *Decider) layers(p *api.Profile) ([]ignition.Layer, error) {
	var layers []ignition.Layer
	for _, name := range p.Spec.Layers {
		l, ok := store.Cached[api.Layer](d.Cache, name)
		if !ok {
			return nil, fmt.Errorf("the Profile %s: no Layer is called %q", p.Metadata.Name, name)
		}
		layers = append(layers, ignition.Layer{Name: name, Butane: l.Spec.Butane})
	}
	return layers, nil
}

// secrets is what templates may ask for. Whether the boot has proved enough for
// that was decided before.
func (d *Decider) secrets(ctx context.Context) func(layer, name, key string) (string, error) {
	return func(layer, name, key string) (string, error) {
		data, err := store.OpenSecret(ctx, d.Store, name, api.UseLayer(layer))
		if err != nil {
			return "", err
		}
		value, ok := data[key]
		if !ok {
			return "", fmt.Errorf("the Secret %s has no key %q", name, key)
		}
		return value, nil
	}
}

// facts is what a Layer's template sees.
func (d *Decider) facts(m *api.Machine, p *api.Profile, img *api.Image) map[string]any {
	variables := maps.Clone(p.Spec.Variables)
	if variables == nil {
		variables = map[string]string{}
	}
	maps.Copy(variables, m.Spec.Variables)
	site := d.site()
	facts := map[string]any{
		"Machine": map[string]any{
			"Name": m.Metadata.Name, "UID": m.Metadata.UID, "Labels": orEmpty(m.Metadata.Labels), "Zone": m.Spec.Zone,
			"Rack": m.Spec.Location.Rack, "Unit": m.Spec.Location.Unit, "Links": m.Spec.Links, "MACs": m.MACs(), "FQDN": fqdn(m, site),
		},
		"Site":      map[string]any{"Domain": site.Domain, "NTP": site.NTP, "DNS": site.DNS, "SSHKeys": site.SSHKeys},
		"Image":     map[string]any{"Name": img.Metadata.Name, "Version": img.Spec.Version, "OS": img.Spec.OS},
		"Profile":   map[string]any{"Name": p.Metadata.Name},
		"Variables": variables,
	}
	if z, ok := store.Cached[api.Zone](d.Cache, m.Spec.Zone); ok {
		facts["Zone"] = map[string]any{"Name": z.Metadata.Name, "ASN": z.Spec.ASN, "Prefixes": z.Spec.Prefixes, "Labels": orEmpty(z.Metadata.Labels)}
	}
	return facts
}

func orEmpty(labels map[string]string) map[string]string {
	if labels == nil {
		return map[string]string{}
	}
	return labels
}

func fqdn(m *api.Machine, site api.SiteSpec) string {
	if site.Domain == "" {
		return m.Metadata.Name
	}
	return m.Metadata.Name + "." + site.Domain
}

// system is what rackweft itself puts on every host: its name, its network, and
// nodeagent with what it needs to join.
func (d *Decider) system(m *api.Machine, img *api.Image, server netip.Addr) (ignition.System, error) {
	site := d.site()
	links, err := d.links(m, site)
	if err != nil {
		return ignition.System{}, err
	}
	files, err := ignition.NetworkFiles(links)
	if err != nil {
		return ignition.System{}, err
	}
	config, err := json.MarshalIndent(api.AgentConfig{
		Machine: m.Metadata.Name, UID: m.Metadata.UID, API: d.apiURLs(server), CA: string(d.CA.CertPEM()),
		AttemptID: m.Status.Attempt.ID, JoinTokenFile: tokenPath, Metrics: site.HostMetrics,
		HostSpec: api.Bookmark{Epoch: d.Epoch, Revision: d.Cache.Revision()}, Kernel: img.Spec.Files[api.KernelFile].SHA256,
	}, "", "  ")
	if err != nil {
		return ignition.System{}, fmt.Errorf("encode nodeagent's config: %w", err)
	}
	token := d.secret(m, ca.PurposeJoin, api.TrustMAC)
	files = append(files,
		ignition.File{Path: "/etc/hostname", Mode: 0o644, Contents: []byte(m.Metadata.Name + "\n")},
		ignition.File{Path: configPath, Mode: 0o644, Contents: append(config, '\n')},
		ignition.File{Path: tokenPath, Mode: 0o600, Contents: []byte(token + "\n")},
	)
	files = append(files, kernelFiles()...)
	if len(site.NTP) > 0 {
		files = append(files, ignition.File{Path: "/etc/systemd/timesyncd.conf.d/10-rackweft.conf", Mode: 0o644,
			Contents: []byte("[Time]\nNTP=" + strings.Join(addrs(site.NTP), " ") + "\n")})
	}
	return ignition.System{
		Files:  files,
		Remote: []ignition.RemoteFile{{Path: agentPath, Mode: 0o755, URL: d.httpURL(server) + "/blobs/sha256/" + string(d.Agent.Digest), SHA256: string(d.Agent.Digest)}},
		Units: []ignition.Unit{{Name: "nodeagent.service", Contents: d.Agent.Unit, Enabled: true},
			{Name: "nodeagent-speaker.service", Contents: d.Agent.Speaker, Enabled: true}},
		Users: []ignition.User{{Name: "core", SSHKeys: site.SSHKeys}},
	}, nil
}

// links turns the Machine's links into what systemd-networkd is told.
func (d *Decider) links(m *api.Machine, site api.SiteSpec) ([]ignition.Link, error) {
	var links []ignition.Link
	for _, l := range m.Spec.Links {
		out := ignition.Link{Name: l.Name, MAC: string(l.MAC), MTU: l.MTU}
		if l.Bond != nil {
			out.Bond = &ignition.Bond{Mode: l.Bond.Mode}
			for _, mac := range l.Bond.Members {
				out.Bond.Members = append(out.Bond.Members, string(mac))
			}
		}
		if l.VLAN != nil {
			out.VLAN = &ignition.VLAN{Link: l.VLAN.Link, ID: l.VLAN.ID}
		}
		if err := d.addressing(&out, l, site); err != nil {
			return nil, err
		}
		links = append(links, out)
	}
	return links, nil
}

// addressing gives a link its addresses: DHCP on a provisioning Subnet, static
// ones where the spec pins them elsewhere, else DHCP of whoever serves it there.
func (d *Decider) addressing(out *ignition.Link, l api.Link, site api.SiteSpec) error {
	if l.Subnet == "" {
		return nil
	}
	s, ok := store.Cached[api.Subnet](d.Cache, l.Subnet)
	if !ok {
		return fmt.Errorf("link %s: no Subnet is called %q", l.Name, l.Subnet)
	}
	if out.MTU == 0 && s.Spec.MTU != 1500 {
		out.MTU = s.Spec.MTU
	}
	if s.Spec.Purpose == api.Provisioning || len(l.Addresses) == 0 {
		out.DHCP = true
		return nil
	}
	for _, a := range l.Addresses {
		prefix, ok := s.Prefix(a)
		if !ok {
			return fmt.Errorf("link %s: address %s is in no prefix of Subnet %s", l.Name, a, l.Subnet)
		}
		out.Addresses = append(out.Addresses, netip.PrefixFrom(a, prefix.Bits()))
	}
	if s.Spec.Gateway.IsValid() {
		out.Gateways = []netip.Addr{s.Spec.Gateway}
	}
	out.DNS = orElse(s.Spec.DNS, site.DNS)
	if site.Domain != "" {
		out.Domains = []string{site.Domain}
	}
	out.NTP = addrs(orElse(s.Spec.NTP, site.NTP))
	return nil
}

func addrs(list []netip.Addr) []string {
	out := make([]string, len(list))
	for i, a := range list {
		out[i] = a.String()
	}
	return out
}
