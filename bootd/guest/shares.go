package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// shares compiles a Guest's shares for its part: the host fetches their content, which is in no HostSpec.
func shares(c *store.Cache, g *api.Guest) ([]api.GuestShare, error) {
	var list []api.GuestShare
	for _, s := range g.Spec.Shares {
		version, err := shareVersion(c, g, s)
		if err != nil {
			return nil, fmt.Errorf("share %s: %w", s.Name, err)
		}
		list = append(list, api.GuestShare{Name: s.Name, Version: version})
	}
	return list, nil
}

// shareVersion identifies a share's content. For a Secret's values it uses the keyed digests.
func shareVersion(c *store.Cache, g *api.Guest, s api.Share) (string, error) {
	content := s.Files
	if s.Secret != "" {
		secret, ok := store.Cached[api.Secret](c, s.Secret)
		if !ok {
			return "", fmt.Errorf("no Secret is named %q", s.Secret)
		}
		if err := secret.Permits(api.UseGuest(g.Metadata.Name)); err != nil {
			return "", err
		}
		for key := range secret.Status.Digests {
			if err := api.ValidateFileName(key); err != nil {
				return "", fmt.Errorf("the keys of Secret %s must be file names: %w", s.Secret, err)
			}
		}
		content = secret.Status.Digests
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append([]byte(s.Secret+" "), raw...))
	return hex.EncodeToString(sum[:16]), nil
}

// Share is the content of a Guest's share. Its version may be older than the content, and never newer.
func (c Configs) Share(ctx context.Context, g *api.Guest, name string) (api.GuestShareContent, error) {
	i := slices.IndexFunc(g.Spec.Shares, func(s api.Share) bool { return s.Name == name })
	if i < 0 {
		return api.GuestShareContent{}, fmt.Errorf("no share of Guest %s is named %q", g.Metadata.Name, name)
	}
	s := g.Spec.Shares[i]
	version, err := shareVersion(c.Cache, g, s)
	if err != nil || s.Secret == "" {
		return api.GuestShareContent{Version: version, Files: s.Files}, err
	}
	values, err := store.OpenSecret(ctx, c.Store, s.Secret, api.UseGuest(g.Metadata.Name))
	return api.GuestShareContent{Version: version, Files: values}, err
}
