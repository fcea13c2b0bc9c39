package api

// Reference is one object that another names.
type Reference struct{ Kind, Name, Pointer string }

// References lists every object that o names.
func References(o Object) []Reference {
	if list := KindOf(o).References; list != nil {
		return list(o)
	}
	return nil
}

type references []Reference

// add lists an object that is named at a place; an empty name is none.
func (l *references) add(kind, name string, at ...any) {
	if name != "" {
		*l = append(*l, Reference{kind, name, Pointer(at...)})
	}
}
