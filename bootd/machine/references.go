package machine

import (
	"fmt"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// missing names the first thing that the spec refers to and that does not
// exist, or is not ready.
func missing(c *store.Cache, m *api.Machine) string {
	if z := m.Spec.Zone; z != "" {
		if _, ok := store.Cached[api.Zone](c, z); !ok {
			return fmt.Sprintf("spec.zone: no Zone is called %q", z)
		}
	}
	for i, l := range m.Spec.Links {
		if _, ok := store.Cached[api.Subnet](c, l.Subnet); l.Subnet != "" && !ok {
			return fmt.Sprintf("spec.links[%d].subnet: no Subnet is called %q", i, l.Subnet)
		}
	}
	if b := m.Spec.BMC; b != nil {
		s, ok := store.Cached[api.Secret](c, b.Credentials)
		if !ok {
			return fmt.Sprintf("spec.bmc.credentials: no Secret is called %q", b.Credentials)
		}
		if err := s.Permits(api.UseBMC(b.Address)); err != nil {
			return "spec.bmc.credentials: " + err.Error()
		}
	}
	if m.Spec.Profile == "" {
		if m.Spec.State == api.StateActive {
			return "spec.profile: a Machine with state Active needs a Profile"
		}
		return ""
	}
	return missingOfProfile(c, m.Spec.Profile)
}

// unserved warns of a production link that gets no address from rackweft: bootd
// serves DHCP on provisioning Subnets only, but another server may be there, so
// it holds nothing up.
func unserved(c *store.Cache, m *api.Machine) string {
	for i, l := range m.Spec.Links {
		s, ok := store.Cached[api.Subnet](c, l.Subnet)
		if ok && s.Spec.Purpose == api.Production && len(l.Addresses) == 0 {
			return fmt.Sprintf("; but spec.links[%d] pins no address on production Subnet %s, where bootd serves no DHCP: the host has one only if another DHCP server gives it", i, l.Subnet)
		}
	}
	return ""
}

func missingOfProfile(c *store.Cache, name string) string {
	p, ok := store.Cached[api.Profile](c, name)
	if !ok {
		return fmt.Sprintf("spec.profile: no Profile is called %q", name)
	}
	if p.Spec.Install != nil {
		return fmt.Sprintf("Profile %s: spec.install writes to a disk, which this bootd cannot do yet: remove it to boot the Image live", name)
	}
	for _, l := range p.Spec.Layers {
		if _, ok := store.Cached[api.Layer](c, l); !ok {
			return fmt.Sprintf("Profile %s: no Layer is called %q", name, l)
		}
	}
	img, ok := store.Cached[api.Image](c, p.Spec.Image)
	if !ok {
		return fmt.Sprintf("Profile %s: no Image is called %q", name, p.Spec.Image)
	}
	if ready := img.Status.Conditions.Get(api.CondReady); ready == nil || ready.Status != api.True {
		why := "its files have not been looked at yet"
		if ready != nil {
			why = ready.Message
		}
		return fmt.Sprintf("Image %s is not ready: %s", p.Spec.Image, why)
	}
	return ""
}
