package ignition

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

type secretFunc func(name, key string) (string, error)

// vault hands out Secrets and remembers them, so that no message shows one.
type vault struct {
	lookup secretFunc
	used   map[string]string // "NAME/KEY" → value
}

func newVault(lookup secretFunc) *vault {
	return &vault{lookup: lookup, used: map[string]string{}}
}

// secretReader is one layer's view of the vault.
type secretReader struct {
	vault  *vault
	read   bool // the layer was given a Secret
	failed bool // the layer asked for a Secret that it may not have
}

func (v *vault) reader() *secretReader { return &secretReader{vault: v} }

func (r *secretReader) get(name, key string) (string, error) {
	if r.vault.lookup == nil {
		r.failed = true
		return "", errors.New("this machine may not be given Secrets")
	}
	value, err := r.vault.lookup(name, key)
	if err != nil {
		r.failed = true
		return "", fmt.Errorf("%s, key %s: %w", name, key, err)
	}
	r.read = true
	r.vault.used[name+"/"+key] = value
	return value, nil
}

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
