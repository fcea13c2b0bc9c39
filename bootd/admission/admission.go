package admission

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/rackweft/rackweft/api"
)

// Verdict is admission's decision on an object.
type Verdict struct {
	Errors   api.FieldErrors
	Warnings []string // it may be stored, but is not effective yet
	Takeover []string // discovered Machines that it replaces
}

func (v *Verdict) fail(pointer, format string, args ...any) {
	v.Errors = append(v.Errors, api.FieldError{Pointer: pointer, Message: fmt.Sprintf(format, args...)})
}

// Judge judges an object, which is valid by itself, against all the others. current is the object that it
// replaces, or nil.
func Judge(w *World, o, current api.Object) Verdict {
	w.mu.RLock()
	defer w.mu.RUnlock()
	v := new(Verdict)
	if judge := rulesOf(api.KindOf(o).Name).judge; judge != nil {
		judge(v, w, o, current)
	}
	for _, r := range api.References(o) {
		if !w.has(r.Kind, r.Name) && !(r.Kind == api.KindOf(o).Name && r.Name == o.Meta().Name) {
			v.Warnings = append(v.Warnings, fmt.Sprintf("%s: %s %q does not exist yet", r.Pointer, r.Kind, r.Name))
		}
	}
	return *v
}

func zoneText(name string) string {
	if name == "" {
		return "no Zone (set spec.zone)"
	}
	return "Zone " + name
}

func prefixes(list []netip.Prefix) string {
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = p.String()
	}
	return strings.Join(texts, ", ")
}
