package testsite

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/rackweft/rackweft/api"
)

// Objects are one of each kind that fit together.
func Objects() []api.Object {
	zone := &api.Zone{Spec: api.ZoneSpec{ASN: 64601}}
	zone.Metadata.Name = "yellow"
	prod := &api.Subnet{Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: Prefixes("198.18.8.0/24")}}
	prod.Metadata.Name = "prod"
	pxe := &api.Subnet{Spec: api.SubnetSpec{Purpose: api.Provisioning, Interface: "eth1", Prefixes: Prefixes("198.18.0.0/24")}}
	pxe.Metadata.Name = "pxe"
	image := &api.Image{Spec: api.ImageSpec{Version: "1", Files: map[string]api.ImageFile{"kernel": {SHA256: Digest("kernel")}}}}
	image.Metadata.Name = "debian"
	layer := &api.Layer{Spec: api.LayerSpec{Butane: "storage: {}"}}
	layer.Metadata.Name = "site"
	profile := &api.Profile{Spec: api.ProfileSpec{Image: "debian", Layers: []string{"site"}}}
	profile.Metadata.Name = "worker"
	secret := &api.Secret{Spec: api.SecretSpec{Data: map[string]string{"username": "a", "password": "b"}}}
	secret.Metadata.Name = "bmc"
	network := &api.Network{Spec: api.NetworkSpec{Zone: "yellow", CIDRs: Prefixes("10.5.0.0/16"), VNI: 10017}}
	network.Metadata.Name = "net1"
	machine := NewMachine("r1", "52:54:00:00:00:01")
	machine.Spec.Zone, machine.Spec.Profile = "yellow", "worker"
	machine.Spec.Links = append(machine.Spec.Links, api.Link{Name: "prod", VLAN: &api.VLAN{Link: "eth0", ID: 8}, Subnet: "prod", Addresses: []netip.Addr{netip.MustParseAddr("198.18.8.7")}})
	machine.Spec.BMC = &api.BMC{Address: "https://198.18.0.7", Credentials: "bmc"}
	all := []api.Object{zone, secret, prod, pxe, image, layer, profile, network, machine}
	for _, o := range all {
		o.SetDefaults()
	}
	return all
}

// Prefixes parses prefixes.
func Prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, t := range texts {
		list = append(list, netip.MustParsePrefix(t))
	}
	return list
}

// NewMachine makes a Machine with a link for each MAC: eth0, eth1 and so on.
func NewMachine(name string, macs ...api.MAC) *api.Machine {
	m := new(api.Machine)
	m.Metadata.Name = name
	for i, mac := range macs {
		m.Spec.Links = append(m.Spec.Links, api.Link{Name: fmt.Sprintf("eth%d", i), MAC: mac})
	}
	m.SetDefaults()
	return m
}

// Digest is the SHA-256 of a text.
func Digest(text string) api.SHA256 {
	sum := sha256.Sum256([]byte(text))
	return api.SHA256(hex.EncodeToString(sum[:]))
}
