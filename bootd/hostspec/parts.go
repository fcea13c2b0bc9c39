package hostspec

import (
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/bootd/store"
)

// table lists kinds of parts.
type table []part.Kind

// parts lists every kind of part. The base comes first: others depend on it.
func (c *Compiler) parts() table {
	list := table{c.basePart()}
	if c.Parts != nil {
		list = append(list, c.Parts(c.Cache)...)
	}
	return list
}

// of finds the kind of a part by its name. A host may report any name.
func (t table) of(name string) part.Kind {
	word, _, _ := strings.Cut(name, "/")
	for _, k := range t {
		if k.Name == word {
			return k
		}
	}
	return part.Kind{}
}

// concerns finds the hosts whose HostSpec may differ after a change. A kind of object without parts concerns none.
func (t table) concerns(c store.Change) part.Hosts {
	var all part.Hosts
	for _, k := range t {
		if k.Concerns == nil {
			continue
		}
		all.Add(k.Concerns(c))
	}
	return all
}

// speaks returns the object of a host's event; nil when the host may not record events for it.
func (t table) speaks(hostUID string, e *api.Event) api.Object {
	for _, k := range t {
		if k.Object != "" && k.Object == e.Kind && k.Speaks != nil {
			return k.Speaks(hostUID, e.Name, e.UID)
		}
	}
	return nil
}
