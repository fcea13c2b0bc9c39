package redfishtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// Resource is one Redfish resource.
type Resource = map[string]any

// Tree has the resources by their paths, without a slash at the end.
type Tree map[string]Resource

// ReadTree reads a tree of index.json files, each under the path of its resource. Files that hold no JSON object are
// left out; a service root that a capture lacks is made up from the collections that are there.
func ReadTree(files fs.FS) (Tree, error) {
	tree := Tree{}
	err := fs.WalkDir(files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || path.Base(name) != "index.json" {
			return err
		}
		data, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		var resource Resource
		if json.Unmarshal(data, &resource) == nil && resource != nil {
			tree["/"+path.Dir(name)] = resource
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read a tree of resources: %w", err)
	}
	if len(tree) == 0 {
		return nil, errors.New("read a tree of resources: it has no index.json")
	}
	tree.completeRoot()
	return tree, nil
}

// ParseTree reads a tree that is one JSON object: path to resource.
func ParseTree(data []byte) (Tree, error) {
	var tree Tree
	if err := json.Unmarshal(data, &tree); err != nil {
		return nil, fmt.Errorf("parse a tree of resources: %w", err)
	}
	for at, resource := range tree {
		if !strings.HasPrefix(at, "/redfish/v1") || strings.HasSuffix(at, "/") || resource == nil {
			return nil, fmt.Errorf("parse a tree of resources: invalid resource at %q: want an object below /redfish/v1", at)
		}
	}
	tree.completeRoot()
	return tree, nil
}

const (
	rootPath     = "/redfish/v1"
	sessionsPath = rootPath + "/SessionService/Sessions"
	accountPath  = rootPath + "/AccountService/Accounts/1"
)

// completeRoot adds the links that partial captures lack.
func (t Tree) completeRoot() {
	root := t[rootPath]
	if root == nil {
		root = Resource{"@odata.id": rootPath + "/", "Id": "RootService", "RedfishVersion": "1.6.0"}
		t[rootPath] = root
	}
	for _, name := range []string{"Systems", "Managers", "Chassis"} {
		if root[name] == nil && t[rootPath+"/"+name] != nil {
			root[name] = reference(rootPath + "/" + name)
		}
	}
	if root["Links"] == nil {
		root["Links"] = Resource{"Sessions": reference(sessionsPath)}
	}
}

func reference(at string) Resource { return Resource{"@odata.id": at} }

// Clone copies the tree and everything in it.
func (t Tree) Clone() Tree {
	c := make(Tree, len(t))
	for at, resource := range t {
		c[at] = clone(resource).(Resource)
	}
	return c
}

func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		c := make(map[string]any, len(v))
		for key, value := range v {
			c[key] = clone(value)
		}
		return c
	case []any:
		c := make([]any, len(v))
		for i, value := range v {
			c[i] = clone(value)
		}
		return c
	}
	return v
}

// members are the paths of a collection's members.
func (t Tree) members(collection string) []string {
	list, _ := t[collection]["Members"].([]any)
	var paths []string
	for _, member := range list {
		m, _ := member.(map[string]any)
		if at, ok := m["@odata.id"].(string); ok {
			paths = append(paths, strings.TrimSuffix(at, "/"))
		}
	}
	return paths
}

// systems are the paths of the ComputerSystems that the tree has.
func (t Tree) systems() []string { return t.present(rootPath + "/Systems") }

func (t Tree) managers() []string { return t.present(rootPath + "/Managers") }

func (t Tree) present(collection string) []string {
	return slices.DeleteFunc(t.members(collection), func(at string) bool { return t[at] == nil })
}

// object is a resource's part, or nil.
func object(r Resource, keys ...string) Resource {
	for _, key := range keys {
		r, _ = r[key].(map[string]any)
	}
	return r
}

func str(r Resource, key string) string {
	s, _ := r[key].(string)
	return s
}

// merge writes a PATCH's properties over a resource's: objects by property, anything else as a whole.
func merge(into, from Resource) {
	for key, value := range from {
		part, isObject := value.(map[string]any)
		old, wasObject := into[key].(map[string]any)
		if isObject && wasObject {
			merge(old, part)
			continue
		}
		into[key] = clone(value)
	}
}

// unknown is the path of the first property that a resource does not have, in order; what it offers no value for but
// annotates with allowable values is known as well.
func unknown(have, sent Resource) string {
	for _, key := range slices.Sorted(maps.Keys(sent)) {
		if strings.HasPrefix(key, "@") || strings.HasPrefix(key, "Oem") {
			continue
		}
		value, ok := have[key]
		_, annotated := have[key+"@Redfish.AllowableValues"]
		if !ok && !annotated {
			return key
		}
		old, wasObject := value.(map[string]any)
		part, isObject := sent[key].(map[string]any)
		if !wasObject || !isObject || key == "Attributes" {
			continue
		}
		if below := unknown(old, part); below != "" {
			return key + "/" + below
		}
	}
	return ""
}
