package ignition

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// secretFunc is the template function `secret NAME KEY`.
type secretFunc func(name, key string) (string, error)

// vault returns Secrets and remembers them, so that no message shows one.
type vault struct {
	lookup func(layer, name, key string) (string, error)
	used   map[string]string // "NAME/KEY" → value
}

func newVault(lookup func(layer, name, key string) (string, error)) *vault {
	return &vault{lookup: lookup, used: map[string]string{}}
}

// secretReader is one layer's access to the vault.
type secretReader struct {
	vault  *vault
	layer  string
	known  map[[2]string]string // what the layer was given
	failed bool                 // the layer requested a Secret that it may not have
}

func (v *vault) reader(layer string) *secretReader {
	return &secretReader{vault: v, layer: layer, known: map[[2]string]string{}}
}

func (r *secretReader) get(name, key string) (string, error) {
	if value, ok := r.known[[2]string{name, key}]; ok {
		return value, nil
	}
	if r.vault.lookup == nil {
		r.failed = true
		return "", errors.New("this machine may not be given Secrets")
	}
	value, err := r.vault.lookup(r.layer, name, key)
	if err != nil {
		r.failed = true
		return "", fmt.Errorf("%s, key %s: %w", name, key, err)
	}
	r.known[[2]string{name, key}] = value
	r.vault.used[name+"/"+key] = value
	return value, nil
}

// read reports whether the layer was given a Secret.
func (r *secretReader) read() bool { return len(r.known) > 0 }

func (v *vault) names() []string {
	return slices.Sorted(maps.Keys(v.used))
}

// scrub is the second line of defence: compileLayer already keeps Secrets out
// of errors.
func (v *vault) scrub(text string) string {
	for _, name := range v.names() {
		if value := v.used[name]; value != "" {
			text = strings.ReplaceAll(text, value, "[secret "+name+"]")
		}
	}
	return text
}

func (v *vault) scrubAll(texts []string) []string {
	for i, text := range texts {
		texts[i] = v.scrub(text)
	}
	return texts
}

func (v *vault) scrubOrigins(origins []Origin) []Origin {
	for i := range origins {
		origins[i].Path = v.scrub(origins[i].Path)
	}
	return origins
}
