package server

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"

	"github.com/rackweft/rackweft/api"
)

// masked replaces a Secret's value in the audit.
const masked = "(secret)"

// difference lists the differences in spec, labels and annotations; either object may be nil. Of a Secret it
// names the keys and never the values.
func difference(old, now api.Object) []api.Change {
	a, b := visible(old), visible(now)
	return compare(nil, "", a, b)
}

// visible is the part of an object that clients write, as plain JSON values.
func visible(o api.Object) any {
	if o == nil {
		return nil
	}
	raw, err := api.Encode(o)
	if err != nil {
		return nil
	}
	var all struct {
		Spec     any `json:"spec"`
		Metadata struct {
			Labels      map[string]any `json:"labels"`
			Annotations map[string]any `json:"annotations"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil
	}
	spec := all.Spec
	if secret, ok := o.(*api.Secret); ok {
		// The digests show which values differ.
		data := map[string]any{}
		for key, digest := range secret.Status.Digests {
			data[key] = sealed(digest)
		}
		shown := map[string]any{"data": data}
		if fields, ok := all.Spec.(map[string]any); ok && fields["uses"] != nil {
			shown["uses"] = fields["uses"]
		}
		spec = shown
	}
	metadata := map[string]any{}
	if len(all.Metadata.Labels) > 0 {
		metadata["labels"] = all.Metadata.Labels
	}
	if len(all.Metadata.Annotations) > 0 {
		metadata["annotations"] = all.Metadata.Annotations
	}
	return map[string]any{"metadata": metadata, "spec": spec}
}

// sealed is a value that is compared but not shown.
type sealed string

// compare appends the leaves in which a and b differ; a subtree that only one of them has is one change.
func compare(changes []api.Change, pointer string, a, b any) []api.Change {
	am, aok := a.(map[string]any)
	bm, bok := b.(map[string]any)
	if aok && bok {
		keys := slices.Sorted(maps.Keys(union(am, bm)))
		for _, k := range keys {
			changes = compare(changes, pointer+api.Pointer(k), am[k], bm[k])
		}
		return changes
	}
	al, aok := a.([]any)
	bl, bok := b.([]any)
	if aok && bok {
		for i := range max(len(al), len(bl)) {
			changes = compare(changes, pointer+api.Pointer(i), at(al, i), at(bl, i))
		}
		return changes
	}
	if reflect.DeepEqual(a, b) {
		return changes
	}
	return append(changes, api.Change{Pointer: pointer, Old: mask(a), New: mask(b)})
}

func union(a, b map[string]any) map[string]any {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

func at(list []any, i int) any {
	if i < len(list) {
		return list[i]
	}
	return nil
}

// mask replaces every sealed value.
func mask(v any) any {
	switch v := v.(type) {
	case sealed:
		return masked
	case map[string]any:
		shown := make(map[string]any, len(v))
		for k, x := range v {
			shown[k] = mask(x)
		}
		return shown
	}
	return v
}
