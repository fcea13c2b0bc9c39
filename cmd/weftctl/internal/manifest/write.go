package manifest

import (
	"bytes"
	"fmt"

	"go.yaml.in/yaml/v3"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/text"
)

// YAML writes a value as block-style YAML, its fields in the order of its JSON.
func YAML(v any) ([]byte, error) {
	raw, err := api.Encode(v)
	if err != nil {
		return nil, err
	}
	var n yaml.Node
	if err := yaml.Unmarshal(text.YAML(raw), &n); err != nil { // JSON is YAML
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	plain(&n)
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(&n); err != nil {
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	return out.Bytes(), e.Close()
}

// plain drops JSON's quotes and braces; the encoder quotes where YAML needs it. Empty lists and maps are unchanged.
func plain(n *yaml.Node) {
	if len(n.Content) > 0 || n.Kind == yaml.ScalarNode {
		n.Style = 0
	}
	for _, c := range n.Content {
		plain(c)
	}
}
