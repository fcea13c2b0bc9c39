package api

import "testing"

func TestShelf(t *testing.T) {
	s := new(Shelf)
	s.Spec.Zone = "yellow"
	s.SetDefaults()
	if list := References(s); len(list) != 1 || list[0].Kind != "Zone" || list[0].Pointer != "/spec/zone" {
		t.Errorf("references: %+v", list)
	}
	s.Status.Conditions = Conditions{{Type: CondReady, Status: False, Reason: "NoZone"}}
	if c := ConditionsOf(s).Get(CondReady); c == nil {
		t.Error("its condition is not found")
	}
	cells := map[string]string{}
	for _, c := range KindOf(s).Columns() {
		cells[c.Title] = c.Value(s)
	}
	if cells["ZONE"] != "yellow" || cells["READY"] != "no: NoZone" {
		t.Errorf("cells: %v", cells)
	}
	if k, err := LookupKind("shelves"); err != nil || k.Name != "Shelf" || k.Writer != RoleOperator {
		t.Errorf("%+v, %v", k, err)
	}
}
