package guest

import (
	"context"
	"fmt"
	"maps"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/ignition"
)

// Configs compiles the configs of Guests.
type Configs struct {
	Store *store.Store
	Cache *store.Cache
}

// Config is a Guest's config, and its media type.
func (c Configs) Config(ctx context.Context, g *api.Guest) (config []byte, mediaType string, err error) {
	img, ok := store.Cached[api.Image](c.Cache, g.Spec.Image)
	if !ok {
		return nil, "", fmt.Errorf("there is no Image %s", g.Spec.Image)
	}
	if img.Spec.ConfiguredBy == api.CloudInit {
		config, err = c.userData(ctx, g, img)
		return config, "text/cloud-config", err
	}
	result, err := c.compile(ctx, g, img)
	return result.Config, "application/vnd.coreos.ignition+json;version=" + result.Version, err
}

func (c Configs) userData(ctx context.Context, g *api.Guest, img *api.Image) ([]byte, error) {
	if g.Spec.CloudInit == nil {
		return nil, nil
	}
	text, err := ignition.UserData(g.Spec.CloudInit.UserData, c.facts(g, img, g.Spec.CloudInit.Variables), c.secrets(ctx, g))
	if err != nil {
		return nil, fmt.Errorf("render the user data of Guest %s: %w", g.Metadata.Name, err)
	}
	return text, nil
}

// compile compiles a Guest's Ignition config, in the version that its Image reads.
func (c Configs) compile(ctx context.Context, g *api.Guest, img *api.Image) (ignition.Result, error) {
	var layers []ignition.Layer
	for _, name := range g.Spec.Ignition.Layers {
		l, ok := store.Cached[api.Layer](c.Cache, name)
		if !ok {
			return ignition.Result{}, fmt.Errorf("no Layer is named %q", name)
		}
		layers = append(layers, ignition.Layer{Name: name, Butane: l.Spec.Butane})
	}
	version, err := ignition.NegotiateVersion("", img.Spec.IgnitionVersion)
	if err != nil {
		return ignition.Result{}, err
	}
	result, err := ignition.Compile(ignition.Input{
		Layers: layers, Facts: c.facts(g, img, g.Spec.Ignition.Variables), Secret: c.secrets(ctx, g), Version: version,
		System: ignition.System{Files: []ignition.File{{Path: "/etc/hostname", Contents: []byte(g.Metadata.Name + "\n")}}},
	})
	if err != nil {
		return result, fmt.Errorf("compile the config of Guest %s: %w", g.Metadata.Name, err)
	}
	return result, nil
}

// facts are the data of a Layer's template: of the Site only its domain, because a Guest belongs to a tenant.
func (c Configs) facts(g *api.Guest, img *api.Image, variables map[string]string) map[string]any {
	variables = maps.Clone(variables)
	if variables == nil {
		variables = map[string]string{}
	}
	labels := maps.Clone(g.Metadata.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	return map[string]any{
		"Guest": map[string]any{
			"Name": g.Metadata.Name, "UID": g.Metadata.UID, "Labels": labels, "Network": g.Spec.Network,
			"Addresses": g.Status.Addresses, "MAC": g.Status.MAC, "Domain": domain(c.Cache, g),
		},
		"Image":     map[string]any{"Name": img.Metadata.Name, "Version": img.Spec.Version, "OS": img.Spec.OS},
		"Variables": variables,
	}
}

// domain is the domain of a Guest's name, empty when the Site has none.
func domain(c *store.Cache, g *api.Guest) string {
	parent := site.Spec(c).Domain
	if parent == "" {
		return ""
	}
	return g.Spec.Network + "." + parent
}

// secrets gives a Guest's templates the values of Secrets.
func (c Configs) secrets(ctx context.Context, g *api.Guest) func(layer, name, key string) (string, error) {
	return func(_, name, key string) (string, error) {
		data, err := store.OpenSecret(ctx, c.Store, name, api.UseGuest(g.Metadata.Name))
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
