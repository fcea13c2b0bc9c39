package api

import "strconv"

// Shelf is where a Zone's spare servers are kept.
type Shelf struct {
	Base
	Spec   ShelfSpec   `json:"spec" doc:"The desired Shelf."`
	Status ShelfStatus `json:"status,omitzero" doc:"What bootd observes."`
}

// shelfKind describes the kind.
func shelfKind() Kind {
	return Kind{Name: "Shelf", Doc: "Where the spare servers of a Zone are kept.",
		Plural: "shelves", Short: []string{"sh"}, Writer: RoleOperator,
		Columns: shelfColumns, New: func() Object { return new(Shelf) }, is: is[*Shelf],
		Conditions: func(o Object) *Conditions { return &o.(*Shelf).Status.Conditions },
		References: func(o Object) []Reference { return o.(*Shelf).references() }}
}

func shelfColumns() []Column {
	return []Column{
		of("ZONE", func(s *Shelf) string { return s.Spec.Zone }),
		of("UNITS", func(s *Shelf) string { return strconv.Itoa(s.Spec.Units) }),
		ReadyColumn(),
	}
}

func (s *Shelf) references() (l references) {
	l.add("Zone", s.Spec.Zone, "spec", "zone")
	return l
}

// ShelfSpec is the desired Shelf.
type ShelfSpec struct {
	Zone  string `json:"zone" doc:"Zone that the servers are for."`
	Units int    `json:"units,omitzero" doc:"Height in rack units. Default: 1."`
}

// ShelfStatus is the observed Shelf.
type ShelfStatus struct {
	Conditions Conditions `json:"conditions,omitempty" doc:"Ready: its Zone exists."`
}

// SetDefaults implements Object.
func (s *Shelf) SetDefaults() {
	s.defaultType("Shelf")
	if s.Spec.Units == 0 {
		s.Spec.Units = 1
	}
}

// Validate implements Object.
func (s *Shelf) Validate() FieldErrors {
	e := s.common("Shelf")
	if s.Spec.Units < 0 {
		e.add(at("spec", "units"), "%d is less than 1", s.Spec.Units)
	}
	return e
}
