package site

import (
	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Spec is the Site's spec, or the defaults while there is no Site.
func Spec(c *store.Cache) api.SiteSpec {
	if s, ok := store.Cached[api.Site](c, api.SiteName); ok {
		return s.Spec
	}
	s := new(api.Site)
	s.SetDefaults()
	return s.Spec
}
