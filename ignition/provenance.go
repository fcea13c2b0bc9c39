package ignition

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/coreos/ignition/v2/config/v3_6/types"
	vpath "github.com/coreos/vcontext/path"
)

// Origin names the layers that set one item of the config.
type Origin struct {
	Path      string   // such as "file /etc/hostname", "unit a.service", "dropin a.service/10-x.conf", "user core"
	Layer     string   // the layer that set it last
	Overrides []string // earlier layers that set the item too, in order
}

// item is something that layers can set. Layers that set items with the same
// key override each other.
type item struct {
	key  string
	path string
}

// node is a file, directory or link. They share the key because a path can be
// only one of them.
func node(kind, path string) item { return item{"node " + path, kind + " " + path} }

func thing(kind, name string) item { return item{kind + " " + name, kind + " " + name} }

func items(config types.Config) []item {
	var all []item
	for _, d := range config.Storage.Directories {
		all = append(all, node("directory", d.Path))
	}
	for _, f := range config.Storage.Files {
		all = append(all, node("file", f.Path))
	}
	for _, l := range config.Storage.Links {
		all = append(all, node("link", l.Path))
	}
	for _, d := range config.Storage.Disks {
		all = append(all, thing("disk", d.Device))
	}
	for _, r := range config.Storage.Raid {
		all = append(all, thing("raid", r.Name))
	}
	for _, l := range config.Storage.Luks {
		all = append(all, thing("luks", l.Name))
	}
	for _, f := range config.Storage.Filesystems {
		all = append(all, thing("filesystem", f.Device))
	}
	for _, u := range config.Systemd.Units {
		if u.Contents != nil || u.Enabled != nil || u.Mask != nil {
			all = append(all, thing("unit", u.Name))
		}
		for _, d := range u.Dropins {
			all = append(all, thing("dropin", u.Name+"/"+d.Name))
		}
	}
	for _, u := range config.Passwd.Users {
		all = append(all, thing("user", u.Name))
	}
	for _, g := range config.Passwd.Groups {
		all = append(all, thing("group", g.Name))
	}
	for _, k := range config.KernelArguments.ShouldExist {
		all = append(all, thing("kernel argument", string(k)))
	}
	for _, k := range config.KernelArguments.ShouldNotExist {
		all = append(all, thing("kernel argument", string(k)))
	}
	return all
}

// origins holds an Origin by item key.
type origins map[string]Origin

func trace(parts []part) origins {
	found := origins{}
	for _, p := range parts {
		for _, it := range items(p.config) {
			origin, earlier := found[it.key]
			if earlier && origin.Layer != p.layer {
				origin.Overrides = append(origin.Overrides, origin.Layer)
			}
			origin.Path, origin.Layer = it.path, p.layer
			found[it.key] = origin
		}
	}
	return found
}

func (o origins) sorted() []Origin {
	all := make([]Origin, 0, len(o))
	for _, origin := range o {
		all = append(all, origin)
	}
	slices.SortFunc(all, func(a, b Origin) int { return cmp.Compare(a.Path, b.Path) })
	return all
}

// describe returns the item at a place in the merged config, such as
// $.storage.files.3.mode, and its layers: `file /etc/x (layer "a" over "b"): `.
func (o origins) describe(merged types.Config, at vpath.ContextPath) string {
	if len(at.Path) < 3 {
		return ""
	}
	list := fmt.Sprintf("%v.%v", at.Path[0], at.Path[1])
	index, ok := at.Path[2].(int)
	if !ok {
		return ""
	}
	it, ok := itemAt(merged, list, index)
	if !ok {
		return ""
	}
	origin := o[it.key]
	layers := fmt.Sprintf("layer %q", origin.Layer)
	for _, earlier := range slices.Backward(origin.Overrides) {
		layers += fmt.Sprintf(" over %q", earlier)
	}
	return fmt.Sprintf("%s (%s): ", strings.TrimSpace(it.path), layers)
}

func itemAt(c types.Config, list string, i int) (item, bool) {
	switch {
	case list == "storage.files" && i < len(c.Storage.Files):
		return node("file", c.Storage.Files[i].Path), true
	case list == "storage.directories" && i < len(c.Storage.Directories):
		return node("directory", c.Storage.Directories[i].Path), true
	case list == "storage.links" && i < len(c.Storage.Links):
		return node("link", c.Storage.Links[i].Path), true
	case list == "storage.disks" && i < len(c.Storage.Disks):
		return thing("disk", c.Storage.Disks[i].Device), true
	case list == "storage.raid" && i < len(c.Storage.Raid):
		return thing("raid", c.Storage.Raid[i].Name), true
	case list == "storage.luks" && i < len(c.Storage.Luks):
		return thing("luks", c.Storage.Luks[i].Name), true
	case list == "storage.filesystems" && i < len(c.Storage.Filesystems):
		return thing("filesystem", c.Storage.Filesystems[i].Device), true
	case list == "systemd.units" && i < len(c.Systemd.Units):
		return thing("unit", c.Systemd.Units[i].Name), true
	case list == "passwd.users" && i < len(c.Passwd.Users):
		return thing("user", c.Passwd.Users[i].Name), true
	case list == "passwd.groups" && i < len(c.Passwd.Groups):
		return thing("group", c.Passwd.Groups[i].Name), true
	}
	return item{}, false
}
