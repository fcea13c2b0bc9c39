package cli

import (
	"bytes"
	"encoding/json"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/text"
)

// printJSON prints one object, or a list of them.
func (a *app) printJSON(objects []api.Object, single bool) error {
	if single {
		return a.indented(objects[0])
	}
	list := api.List{TypeMeta: api.TypeMeta{APIVersion: api.Version, Kind: "List"}, Items: []json.RawMessage{}}
	for _, o := range objects {
		raw, err := api.Encode(o)
		if err != nil {
			return err
		}
		list.Items = append(list.Items, raw)
	}
	return a.indented(list)
}

func (a *app) indented(v any) error {
	raw, err := api.Encode(v)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return err
	}
	out.WriteByte('\n')
	return a.out.WriteData(text.JSON(out.Bytes()))
}
