package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/guest"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/ignition"
)

// vaults are Secrets of each kind of use, by the value that nobody may read who
// is no admin.
func vaults() map[string]*api.Secret {
	all := map[string]*api.Secret{}
	for name, uses := range map[string]*api.SecretUses{
		"old":     nil, // of before there were uses
		"none":    {},
		"r1-bmc":  {BMC: []string{"198.18.0.7"}},
		"leaf":    {Uplinks: []string{"yellow"}},
		"peering": {Networks: []string{"net1"}},
		"vault":   {Layers: []string{"base"}},
		"tls":     {Guests: []string{"web"}},
	} {
		s := &api.Secret{Spec: api.SecretSpec{Uses: uses, Data: map[string]string{"username": "root", "password": valueOf(name)}}}
		s.Metadata.Name = name
		all[name] = s
	}
	return all
}

func valueOf(secret string) string { return "value-of-" + secret + "-9f8a7b" }

// leaks counts the Secrets whose values are in a text, as such or encoded.
func leaks(text string) int {
	n := 0
	for name := range vaults() {
		if strings.Contains(text, valueOf(name)) {
			n++
		}
	}
	return n
}

func reads(secrets ...string) string {
	text := "storage: {files: ["
	for _, s := range secrets {
		text += `{path: /etc/` + s + `, contents: {inline: {{ secret "` + s + `" "password" | quote }}}},`
	}
	return text + "]}\n"
}

// house is a Site in which each Secret is in use.
func house(r *rig) []api.Object {
	f := testsite.Objects()
	zone, image, profile, network, machine := f[0].(*api.Zone), f[4].(*api.Image), f[6].(*api.Profile), f[7].(*api.Network), f[8].(*api.Machine)
	zone.Spec.Uplinks = []api.Uplink{{Address: testsite.Prefixes("198.18.8.1/32")[0].Addr(), ASN: 64999, Secret: "leaf"}}
	network.Spec.Peering = &api.Peering{ASN: 64513, Prefixes: testsite.Prefixes("10.244.0.0/16"), Secret: "peering"}
	base := &api.Layer{Spec: api.LayerSpec{Butane: reads("vault")}}
	base.Metadata.Name = "base"
	profile.Spec.Layers = []string{"site", "base"}
	machine.Spec.BMC.Credentials = "r1-bmc"
	g := &api.Guest{Spec: api.GuestSpec{Network: "net1", Image: "debian", CPUs: 1, Memory: api.Bytes(1 << 30), Shares: []api.Share{{Name: "tls", Secret: "tls"}}}}
	g.Metadata.Name = "web"
	var all []api.Object
	for _, s := range vaults() {
		all = append(all, s)
	}
	cloud := &api.Image{Spec: image.Spec}
	cloud.Metadata.Name, cloud.Spec.ConfiguredBy = "cloud", api.CloudInit
	return append(all, zone, f[2], f[3], image, cloud, f[5], base, profile, network, machine, g)
}

// rendered is all that a Machine, or a Guest, would be given as things stand.
func (r *rig) rendered(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, m := range store.CachedList[api.Machine](r.cache) {
		if !strings.HasPrefix(m.Metadata.Name, "evil") {
			continue // what the Site's own machines are given stays with them
		}
		p, ok := store.Cached[api.Profile](r.cache, m.Spec.Profile)
		if !ok {
			continue
		}
		for _, name := range p.Spec.Layers {
			l, ok := store.Cached[api.Layer](r.cache, name)
			if !ok {
				continue
			}
			result, err := ignition.Compile(ignition.Input{Version: "3.4.0", Layers: []ignition.Layer{{Name: name, Butane: l.Spec.Butane}},
				Facts: map[string]any{"Variables": m.Spec.Variables},
				Secret: func(layer, name, key string) (string, error) {
					data, err := store.OpenSecret(t.Context(), r.store, name, api.UseLayer(layer))
					return data[key], err
				}})
			fmt.Fprintln(&out, string(result.Config), err)
		}
		if m.Spec.Zone == "yellow" { // a host of it is given the keys of uplinks and Networks
			for secret, use := range map[string]api.SecretUse{"leaf": api.UseUplink("yellow"), "peering": api.UseNetwork("net1")} {
				data, err := store.OpenSecret(t.Context(), r.store, secret, use)
				fmt.Fprintln(&out, data, err)
			}
		}
		if m.Spec.BMC != nil {
			data, err := store.OpenSecret(t.Context(), r.store, m.Spec.BMC.Credentials, api.UseBMC(m.Spec.BMC.Address))
			fmt.Fprintln(&out, data, err)
		}
	}
	for _, n := range store.CachedList[api.Network](r.cache) {
		if p := n.Spec.Peering; p != nil && strings.HasPrefix(n.Metadata.Name, "evil") {
			data, err := store.OpenSecret(t.Context(), r.store, p.Secret, api.UseNetwork(n.Metadata.Name))
			fmt.Fprintln(&out, data, err)
		}
	}
	configs := guest.Configs{Store: r.store, Cache: r.cache}
	for _, g := range store.CachedList[api.Guest](r.cache) {
		if !strings.HasPrefix(g.Metadata.Name, "evil") {
			continue
		}
		config, _, err := configs.Config(t.Context(), g)
		fmt.Fprintln(&out, string(config), err)
		for _, s := range g.Spec.Shares {
			content, err := configs.Share(t.Context(), g, s.Name)
			fmt.Fprintln(&out, content, err)
		}
	}
	return out.String()
}

// way is how somebody tries to come by Secrets: it returns all that they were
// told. What they wrote is looked at by rendered.
type way func(ctx context.Context, c *api.Client) []any

func asked(ctx context.Context, c *api.Client, method, path string, body any) []any {
	resp, err := c.Do(ctx, method, path, body)
	if err != nil {
		return []any{err}
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return []any{string(raw), resp.Header, err}
}

func puts(dry bool, objects ...api.Object) way {
	return func(ctx context.Context, c *api.Client) (told []any) {
		for _, o := range objects {
			path := "/v1/" + api.KindOf(o).Plural + "/" + o.Meta().Name
			if dry {
				path += "?dryRun=true"
			}
			o.SetDefaults()
			told = append(told, asked(ctx, c, http.MethodPut, path, o)...)
		}
		return told
	}
}

func gets(paths ...string) way {
	return func(ctx context.Context, c *api.Client) (told []any) {
		for _, p := range paths {
			told = append(told, asked(ctx, c, http.MethodGet, p, nil)...)
		}
		return told
	}
}

// ways are all by which an operator might come by a Secret.
func ways() map[string]way {
	all := []string{"old", "none", "r1-bmc", "leaf", "peering", "vault", "tls"}
	layer := func(name, text string) *api.Layer {
		l := &api.Layer{Spec: api.LayerSpec{Butane: text}}
		l.Metadata.Name = name
		return l
	}
	profile := func(name string, layers ...string) *api.Profile {
		p := &api.Profile{Spec: api.ProfileSpec{Image: "debian", Layers: layers}}
		p.Metadata.Name = name
		return p
	}
	machine := func(name, profile, zone string, change ...func(*api.Machine)) *api.Machine {
		sum := crc32.ChecksumIEEE([]byte(name))
		m := testsite.NewMachine(name, api.MAC(fmt.Sprintf("52:54:%02x:%02x:%02x:%02x", byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))))
		m.Spec.Profile, m.Spec.Zone = profile, zone
		for _, fn := range change {
			fn(m)
		}
		return m
	}
	guestOf := func(name string, change func(*api.Guest)) *api.Guest {
		g := &api.Guest{Spec: api.GuestSpec{Network: "net1", Image: "debian", CPUs: 1, Memory: api.Bytes(1 << 30)}}
		g.Metadata.Name = name
		change(g)
		return g
	}
	named := map[string]way{}
	for _, s := range all {
		one := "evil-" + s
		named["a Layer and a Machine with a made-up MAC: "+s] = puts(false, layer(one, reads(s)), profile(one, one), machine(one, one, ""))
		named["a Layer by a Profile's variable: "+s] = puts(false, layer(one+"v", `# {{ secret .Variables.name "password" }}`), profile(one+"v", one+"v"),
			machine(one+"v", one+"v", "", func(m *api.Machine) { m.Spec.Variables = map[string]string{"name": s} }))
		named["a BMC of one's own: "+s] = puts(false, machine(one+"bmc", "", "", func(m *api.Machine) { m.Spec.BMC = &api.BMC{Address: "https://198.18.66.6", Credentials: s} }))
		named["a Guest's Layer: "+s] = puts(false, layer(one+"g", reads(s)), guestOf(one+"g", func(g *api.Guest) { g.Spec.Ignition.Layers = []string{one + "g"} }))
		named["a Guest's share: "+s] = puts(false, guestOf(one+"s", func(g *api.Guest) { g.Spec.Shares = []api.Share{{Name: "s", Secret: s}} }))
		named["a Guest's user data: "+s] = puts(false, guestOf(one+"u", func(g *api.Guest) {
			g.Spec.Image = "cloud"
			g.Spec.CloudInit = &api.GuestCloudInit{UserData: `#!{{ secret "` + s + `" "password" }}`}
		}))
		named["a Network's peering: "+s] = puts(false, func() api.Object {
			n := &api.Network{Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes("10.66.0.0/16"), Peering: &api.Peering{ASN: 64513, Prefixes: testsite.Prefixes("10.245.0.0/16"), Secret: s}}}
			n.Metadata.Name = one
			return n
		}())
		named["dry runs: "+s] = puts(true, layer(one+"d", reads(s)), profile(one+"d", one+"d"), layer("base", reads(s)))
		named["rendered errors: "+s] = puts(false, layer(one+"e", `{{ index .Variables (secret "`+s+`" "password") }}{{ .Variables.x }}`), profile(one+"e", one+"e"), machine(one+"e", one+"e", ""))
	}
	named["the given Layer, with more in it"] = puts(false, layer("base", reads(all...)))
	named["the given Layer in a Profile of one's own"] = puts(false, profile("evil-p", "base"), machine("evil-p", "evil-p", ""))
	named["the given Profile on a Machine of one's own"] = puts(false, machine("evil-m", "worker", ""))
	named["a Layer beside the given one"] = puts(false, layer("site", reads(all...)))
	named["a Machine of the Zone, for its keys"] = puts(false, machine("evil-z", "", "yellow"))
	named["an Image of a given Profile"] = puts(false, func() api.Object {
		i := &api.Image{Spec: api.ImageSpec{Version: "evil", Files: map[string]api.ImageFile{"kernel": {SHA256: testsite.Digest("evil")}}}}
		i.Metadata.Name = "debian"
		return i
	}())
	named["the given Guest, changed"] = puts(false, guestOf("web", func(g *api.Guest) {
		g.Spec.Shares = []api.Share{{Name: "tls", Secret: "tls"}, {Name: "x", Secret: "vault"}}
	}))
	named["the given Guest, under its name again"] = func(ctx context.Context, c *api.Client) []any {
		// A viewer cannot delete it, and an operator cannot make it again.
		return puts(false, guestOf("web", func(g *api.Guest) { g.Spec.Network = "evil" }))(ctx, c)
	}
	named["uses that are widened"] = func(ctx context.Context, c *api.Client) (told []any) {
		for name := range vaults() {
			s := &api.Secret{Spec: api.SecretSpec{Uses: &api.SecretUses{Layers: []string{"*"}, Guests: []string{"*"}, BMC: []string{"0.0.0.0/0"}, Operators: true}}}
			s.Metadata.Name = name
			told = append(told, puts(false, s)(ctx, c)...)
		}
		return told
	}
	named["what can be read"] = gets("/v1/secrets", "/v1/secrets/vault", "/v1/secrets/vault/status", "/v1/hostspecs", "/v1/hostspecs/r1", "/v1/layers", "/v1/machines", "/v1/guests",
		"/v1/zones", "/v1/networks", "/v1/machines/r1/explain", "/v1/events", "/v1/decisions", "/v1/audit", "/v1/usage", "/metrics", "/openapi.json")
	named["a console, a display, an export, a command"] = func(ctx context.Context, c *api.Client) (told []any) {
		for _, p := range []string{"/v1/guests/web/console", "/v1/machines/r1/console"} {
			told = append(told, asked(ctx, c, http.MethodGet, p, nil)...)
		}
		told = append(told, asked(ctx, c, http.MethodPost, "/v1/guests/web/exec", api.GuestExec{Command: []string{"cat", "/tls/password"}})...)
		told = append(told, asked(ctx, c, http.MethodPost, "/v1/guests/web/export", api.GuestExport{})...)
		return append(told, asked(ctx, c, http.MethodPost, "/v1/guests/web/vnc", nil)...)
	}
	return named
}

// TestSecretsStayIn tries each way with each role and counts the Secrets that
// get out: none but for admins, to whom the same ways must show that the count
// can be another.
func TestSecretsStayIn(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it makes a Site for each role")
	}
	for _, role := range []string{"viewer", "operator", "host", "admin"} {
		t.Run(role, func(t *testing.T) {
			r := newRig(t)
			put(t, r.root(), house(r)...)
			var c *api.Client
			switch role {
			case "viewer":
				c = r.bearer(viewerToken)
			case "operator":
				c = r.bearer(operatorToken)
			case "host":
				c = r.hostClient("r1")
			case "admin":
				c = r.root()
			}
			before := r.trusted(t)
			out, table := 0, ways()
			for _, name := range sortedKeys(table) {
				told := fmt.Sprint(table[name](t.Context(), c)...)
				r.settled(t)
				n := leaks(told) + leaks(r.rendered(t))
				if n > 0 && role != "admin" {
					t.Errorf("%s: %d Secrets get out: %.300s", name, n, told)
				}
				out += n
			}
			t.Logf("%s: %d ways, %d Secrets", role, len(table), out)
			if after := r.trusted(t); (after == before) != (role != "admin") {
				t.Errorf("what is given Secrets has changed, or not:\n%s\n%s", before, after)
			}
			if role == "admin" && out == 0 {
				t.Error("an admin, who writes anything, is given no Secret either: the count is blind")
			}
			events, err := json.Marshal(r.auditsAll())
			must(t, err)
			if n := leaks(string(events)) + leaks(r.logs.String()); n > 0 {
				t.Errorf("%d Secrets are in the audit or the log", n)
			}
		})
	}
}

// trusted is what must stay as an admin has written it.
func (r *rig) trusted(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for kind, names := range map[string][]string{"secret": {"leaf", "none", "old", "peering", "r1-bmc", "tls", "vault"}, "layer": {"base", "site"},
		"profile": {"worker"}, "image": {"debian"}, "guest": {"web"}, "machine": {"r1"}, "network": {"net1"}, "zone": {"yellow"}} {
		for _, name := range names {
			o, err := r.store.Get(t.Context(), kindOf(t, kind), name)
			must(t, err)
			raw, err := api.Encode(specOf(o).Interface())
			must(t, err)
			fmt.Fprintln(&out, kind, name, string(raw))
		}
	}
	lines := strings.Split(out.String(), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestReachIntoGiven opens what shows a Secret that is given: an operator is
// told why not, and reaches what is given none.
func TestReachIntoGiven(t *testing.T) {
	r := newRig(t)
	put(t, r.root(), house(r)...)
	free := &api.Guest{Spec: api.GuestSpec{Network: "net1", Image: "debian", CPUs: 1, Memory: api.Bytes(1 << 30)}}
	free.Metadata.Name = "free"
	put(t, r.root(), free, testsite.NewMachine("bare", "52:54:00:00:00:09"))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.authority.Pool()}, DisableKeepAlives: true}}
	status := func(method, path, body, upgrade string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, r.base+path, strings.NewReader(body))
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+operatorToken)
		if upgrade != "" {
			req.Header.Set("Upgrade", upgrade)
			req.Header.Set("Connection", "Upgrade")
		}
		code, _, answer := r.send(client, req)
		return code, answer
	}
	for _, c := range []struct{ method, path, body, upgrade string }{
		{"GET", "/console", "", api.ConsoleProtocol}, {"POST", "/exec", `{"command":["id"]}`, ""}, {"POST", "/export", `{}`, ""}, {"POST", "/vnc", "", ""},
	} {
		if code, answer := status(c.method, "/v1/guests/web"+c.path, c.body, c.upgrade); code != http.StatusForbidden || !strings.Contains(answer, "Guest web receives Secret tls") {
			t.Errorf("%s of a Guest that is given one: %d %s", c.path, code, answer)
		}
		if code, answer := status(c.method, "/v1/guests/free"+c.path, c.body, c.upgrade); code == http.StatusForbidden {
			t.Errorf("%s of another: %d %s", c.path, code, answer)
		}
	}
	if code, answer := status("GET", "/v1/machines/r1/console", "", api.ConsoleProtocol); code != http.StatusForbidden || !strings.Contains(answer, "Secret") {
		t.Errorf("the console of a Machine that is given one: %d %s", code, answer)
	}
}

func sortedKeys(m map[string]way) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// settled waits until the cache has all that was written.
func (r *rig) settled(t *testing.T) {
	t.Helper()
	_, revision, err := r.store.List(t.Context(), kindOf(t, "site"))
	must(t, err)
	must(t, r.cache.WaitRevision(t.Context(), revision))
}

func (r *rig) auditsAll() []api.AuditRecord {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.audits)
}
