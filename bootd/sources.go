package bootd

import (
	"net/netip"
	"net/url"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/image"
	"github.com/rackweft/rackweft/bootd/store"
)

// sources are the permitted sources of Images: those that the configuration allows, and all outside the Site.
func (d *daemon) sources() image.Sources {
	return image.Sources{Allow: d.allow, Barred: func(host string, a netip.Addr) string { return barred(d.cache, host, a) }}
}

// barred says whether an address is in a management Subnet, or a host or address is a BMC's.
func barred(cache *store.Cache, host string, a netip.Addr) string {
	for _, s := range store.CachedList[api.Subnet](cache) {
		if _, inside := s.Prefix(a); inside && s.Spec.Purpose == api.Management {
			return "an address in the management Subnet " + s.Metadata.Name
		}
	}
	for _, m := range store.CachedList[api.Machine](cache) {
		if m.Spec.BMC == nil {
			continue
		}
		u, err := url.Parse(m.Spec.BMC.Address)
		if err != nil {
			continue
		}
		bmc, err := netip.ParseAddr(u.Hostname())
		if err == nil && bmc.Unmap() == a || err != nil && strings.EqualFold(u.Hostname(), host) {
			return "the BMC of Machine " + m.Metadata.Name
		}
	}
	return ""
}
