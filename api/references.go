package api

// Reference is one object that another refers to.
type Reference struct{ Kind, Name, Pointer string }

// References lists every object that o refers to.
func References(o Object) []Reference {
	if list := KindOf(o).References; list != nil {
		return list(o)
	}
	return nil
}

type references []Reference

// add adds a reference at a place in the object; an empty name is not a
// reference.
func (l *references) add(kind, name string, at ...any) {
	if name != "" {
		*l = append(*l, Reference{kind, name, Pointer(at...)})
	}
}
