package boot

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/ignition"
)

// compiler compiles a Machine's config from its Profile's Layers, and rackweft's own content for every host.
type compiler struct {
	store *store.Store
	cache *store.Cache
	ca    *ca.Authority
	own   *endpoints
	keys  keys
	epoch int64
	agent Agent
}

func (c *compiler) compile(ctx context.Context, m *api.Machine, peer netip.Addr, accept string) (ignition.Result, error) {
	p, img, err := profileOf(c.cache, m)
	if err != nil {
		return ignition.Result{}, err
	}
	version, err := ignition.NegotiateVersion(accept, img.Spec.IgnitionVersion)
	if err != nil {
		return ignition.Result{}, err
	}
	server, err := c.own.serverFor(peer)
	if err != nil {
		return ignition.Result{}, err
	}
	system, err := c.system(m, img, server)
	if err != nil {
		return ignition.Result{}, err
	}
	layers, err := c.layers(p)
	if err != nil {
		return ignition.Result{}, err
	}
	return ignition.Compile(ignition.Input{
		Layers: layers, Facts: c.facts(m, p, img), Secret: c.secrets(ctx), System: system, Version: version,
	})
}

// origins names the Layer of each part of the Machine's config, as far as it can be compiled now.
func (c *compiler) origins(m *api.Machine) ([]api.Origin, []string, error) {
	p, img, err := profileOf(c.cache, m)
	if err != nil {
		return nil, nil, err
	}
	layers, err := c.layers(p)
	if err != nil {
		return nil, nil, err
	}
	r, err := ignition.Compile(ignition.Input{Layers: layers, Facts: c.facts(m, p, img), Secret: c.masked, Version: img.Spec.IgnitionVersion})
	if err != nil {
		return nil, nil, err
	}
	var origins []api.Origin
	for _, o := range r.Provenance {
		origins = append(origins, api.Origin{Path: o.Path, Layer: o.Layer, Overrides: o.Overrides})
	}
	return origins, r.Warnings, nil
}

// masked returns the Secrets' keys without their values.
func (c *compiler) masked(layer, name, key string) (string, error) {
	s, ok := store.Cached[api.Secret](c.cache, name)
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

func (c *compiler) layers(p *api.Profile) ([]ignition.Layer, error) {
	var layers []ignition.Layer
	for _, name := range p.Spec.Layers {
		l, ok := store.Cached[api.Layer](c.cache, name)
		if !ok {
			return nil, fmt.Errorf("the Profile %s: no Layer is called %q", p.Metadata.Name, name)
		}
		layers = append(layers, ignition.Layer{Name: name, Butane: l.Spec.Butane})
	}
	return layers, nil
}

// secrets returns the values that templates may request. Whether the boot has proved enough for that was decided
// before.
func (c *compiler) secrets(ctx context.Context) func(layer, name, key string) (string, error) {
	return func(layer, name, key string) (string, error) {
		data, err := store.OpenSecret(ctx, c.store, name, api.UseLayer(layer))
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

// facts are the values that a Layer's template can use.
func (c *compiler) facts(m *api.Machine, p *api.Profile, img *api.Image) map[string]any {
	variables := maps.Clone(p.Spec.Variables)
	if variables == nil {
		variables = map[string]string{}
	}
	maps.Copy(variables, m.Spec.Variables)
	site := site.Spec(c.cache)
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
	if z, ok := store.Cached[api.Zone](c.cache, m.Spec.Zone); ok {
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

// system returns rackweft's own content for every host: its name, its network, and nodeagent with what it needs to
// join.
func (c *compiler) system(m *api.Machine, img *api.Image, server netip.Addr) (ignition.System, error) {
	site := site.Spec(c.cache)
	links, err := c.links(m, site)
	if err != nil {
		return ignition.System{}, err
	}
	files, err := ignition.NetworkFiles(links)
	if err != nil {
		return ignition.System{}, err
	}
	config, err := json.MarshalIndent(api.AgentConfig{
		Machine: m.Metadata.Name, UID: m.Metadata.UID, API: c.own.apiURLs(server), CA: string(c.ca.CertPEM()),
		AttemptID: m.Status.Attempt.ID, JoinTokenFile: tokenPath, Metrics: site.HostMetrics,
		HostSpec: api.Bookmark{Epoch: c.epoch, Revision: c.cache.Revision()}, Kernel: img.Spec.Files[api.KernelFile].SHA256,
	}, "", "  ")
	if err != nil {
		return ignition.System{}, fmt.Errorf("encode nodeagent's config: %w", err)
	}
	token := c.keys.secret(m, ca.PurposeJoin, api.TrustMAC)
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
		Remote: []ignition.RemoteFile{{Path: agentPath, Mode: 0o755, URL: c.own.httpURL(server) + "/blobs/sha256/" + string(c.agent.Digest), SHA256: string(c.agent.Digest)}},
		Units: []ignition.Unit{{Name: "nodeagent.service", Contents: c.agent.Unit, Enabled: true},
			{Name: "nodeagent-speaker.service", Contents: c.agent.Speaker, Enabled: true}},
		Users: []ignition.User{{Name: "core", SSHKeys: site.SSHKeys}},
	}, nil
}

// links converts the Machine's links into those of systemd-networkd.
func (c *compiler) links(m *api.Machine, site api.SiteSpec) ([]ignition.Link, error) {
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
		if err := c.addressing(&out, l, site); err != nil {
			return nil, err
		}
		links = append(links, out)
	}
	return links, nil
}

// addressing gives a link its addresses: DHCP on a provisioning Subnet, static ones where the spec pins them
// elsewhere, else DHCP of another server there.
func (c *compiler) addressing(out *ignition.Link, l api.Link, site api.SiteSpec) error {
	if l.Subnet == "" {
		return nil
	}
	s, ok := store.Cached[api.Subnet](c.cache, l.Subnet)
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

func orElse(own, site []netip.Addr) []netip.Addr {
	if len(own) > 0 {
		return own
	}
	return site
}

// Where nodeagent's files are on a host.
const (
	agentPath  = "/opt/rackweft/bin/nodeagent"
	configPath = "/etc/rackweft/nodeagent.yaml"
	tokenPath  = "/etc/rackweft/join-token"
)
