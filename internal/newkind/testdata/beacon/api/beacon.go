package api

import (
	"net/netip"
	"strconv"
)

// Beacon is where the hosts of a Zone show that they are alive.
type Beacon struct {
	Base
	Spec   BeaconSpec   `json:"spec" doc:"The desired Beacon."`
	Status BeaconStatus `json:"status,omitzero" doc:"What bootd observes."`
}

// beaconKind describes the kind.
func beaconKind() Kind {
	return Kind{Name: "Beacon", Doc: "Where the hosts of a Zone show that they are alive.",
		Plural: "beacons", Short: []string{"be"}, Writer: RoleOperator, Independent: true,
		Columns: beaconColumns, New: func() Object { return new(Beacon) }, is: is[*Beacon], Part: beaconPart(),
		Conditions: func(o Object) *Conditions { return &o.(*Beacon).Status.Conditions },
		References: func(o Object) []Reference { return o.(*Beacon).references() }}
}

func beaconColumns() []Column {
	return []Column{
		of("ZONE", func(b *Beacon) string { return b.Spec.Zone }),
		of("HOSTS", func(b *Beacon) string { return strconv.Itoa(b.Status.Hosts) }),
		ReadyColumn(),
	}
}

func (b *Beacon) references() (l references) {
	l.add("Zone", b.Spec.Zone, "spec", "zone")
	return l
}

// BeaconSpec is the desired Beacon.
type BeaconSpec struct {
	Zone    string         `json:"zone" doc:"Zone whose hosts show that they are alive."`
	Address netip.AddrPort `json:"address" doc:"Address and UDP port that they send to."`
}

// BeaconStatus is the observed Beacon.
type BeaconStatus struct {
	Hosts      int        `json:"hosts,omitzero" doc:"Hosts that have applied it."`
	Conditions Conditions `json:"conditions,omitempty" doc:"Ready: every host of the Zone has applied it."`
}

// SetDefaults implements Object.
func (b *Beacon) SetDefaults() { b.defaultType("Beacon") }

// Validate implements Object.
func (b *Beacon) Validate() FieldErrors {
	e := b.common("Beacon")
	if !b.Spec.Address.IsValid() || b.Spec.Address.Port() == 0 {
		e.add(at("spec", "address"), "invalid address: want 198.18.0.9:4711")
	}
	return e
}
