package api

import "net/netip"

// Guest is one KVM virtual machine on a Network.
type Guest struct {
	Base
	Spec   GuestSpec   `json:"spec"`
	Status GuestStatus `json:"status,omitzero"`
}

// GuestSpec is the desired Guest.
type GuestSpec struct {
	Network   string        `json:"network"`
	CPUs      int           `json:"cpus"`
	Memory    Quantity      `json:"memory"`
	Image     string        `json:"image"`
	Disks     []Disk        `json:"disks,omitempty"`
	Ignition  GuestIgnition `json:"ignition,omitzero"`
	Placement Placement     `json:"placement,omitzero"`
	State     string        `json:"state,omitzero" enum:"Running,Stopped"`
}

// Disk is one disk of a Guest.
type Disk struct {
	Name   string   `json:"name"`
	Size   Quantity `json:"size"`
	Retain bool     `json:"retain,omitzero" doc:"Kept when the Guest is made anew; pins it to its host."`
}

// GuestIgnition is what a Guest is configured with.
type GuestIgnition struct {
	Layers    []string          `json:"layers,omitempty"`
	Variables map[string]string `json:"variables,omitempty"`
}

// Placement says where a Guest may run. Its Zone is its Network's.
type Placement struct {
	AntiAffinity string            `json:"antiAffinity,omitzero" doc:"Guests with the same word run on different hosts."`
	Labels       map[string]string `json:"labels,omitempty" doc:"Labels that the host must have."`
}

// GuestStatus is what rackweft observed and chose.
type GuestStatus struct {
	Host       string       `json:"host,omitzero"`
	Addresses  []netip.Addr `json:"addresses,omitempty"`
	MAC        MAC          `json:"mac,omitzero"`
	State      string       `json:"state,omitzero"`
	Conditions Conditions   `json:"conditions,omitempty"`
}

// SetDefaults implements Object.
func (g *Guest) SetDefaults() {
	g.defaultType("Guest")
	if g.Spec.State == "" {
		g.Spec.State = "Running"
	}
}

// Validate implements Object.
func (g *Guest) Validate() FieldErrors {
	e := g.common("Guest")
	e.name(at("spec", "network"), g.Spec.Network)
	e.name(at("spec", "image"), g.Spec.Image)
	e.between(at("spec", "cpus"), g.Spec.CPUs, 1, 512)
	if g.Spec.Memory.Value() < 64<<20 {
		e.add(at("spec", "memory"), "a Guest has at least 64Mi")
	}
	e.oneOf(at("spec", "state"), g.Spec.State, "Running", "Stopped")
	names := map[string]bool{}
	for i, d := range g.Spec.Disks {
		e.name(at("spec", "disks", i, "name"), d.Name)
		if names[d.Name] {
			e.add(at("spec", "disks", i, "name"), "two disks are called %q", d.Name)
		}
		names[d.Name] = true
		if d.Size.Value() < 1<<20 {
			e.add(at("spec", "disks", i, "size"), "a disk has at least 1Mi")
		}
	}
	for i, l := range g.Spec.Ignition.Layers {
		e.name(at("spec", "ignition", "layers", i), l)
	}
	return e
}
