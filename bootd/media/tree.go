package media

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// node is a file or a directory in both file systems.
type node struct {
	name     string
	file     File
	children []*node // of a directory, by name; nil for a file
	parent   *node   // the root is its own

	cluster  int64 // the first in the FAT
	clusters int64
	extent   int64 // a directory's block in the ISO
}

// tree is the root directory of files.
func tree(files []File) (*node, error) {
	root := &node{children: []*node{}}
	root.parent = root
	for _, f := range files {
		if f.Size < 0 || f.Size > maxSize {
			return nil, fmt.Errorf("file %s has %d bytes: want less than 4 GiB", f.Path, f.Size)
		}
		at := root
		names := strings.Split(f.Path, "/")
		for i, name := range names {
			if err := checkName(name); err != nil {
				return nil, fmt.Errorf("invalid path %q: %w", f.Path, err)
			}
			next := at.child(name)
			last := i == len(names)-1
			if next != nil && (last || next.children == nil) {
				return nil, fmt.Errorf("invalid path %q: it is there twice", f.Path)
			}
			if next == nil {
				next = &node{name: name, parent: at}
				if last {
					next.file = f
				} else {
					next.children = []*node{}
				}
				at.children = append(at.children, next)
			}
			at = next
		}
	}
	var err error
	root.walk(func(n *node) {
		slices.SortFunc(n.children, func(a, b *node) int { return strings.Compare(a.name, b.name) })
		if len(n.children) > 40 { // a directory has one block in each file system
			err = fmt.Errorf("directory %q has %d files: want 40 at most", n.name, len(n.children))
		}
	})
	return root, err
}

func checkName(name string) error {
	base, extension, dotted := strings.Cut(name, ".")
	if base == "" || len(base) > 8 || len(extension) > 3 || dotted && extension == "" {
		return errors.New("want names of up to eight characters, and an extension of up to three")
	}
	if strings.Trim(base+extension, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
		return errors.New("want names of A-Z, 0-9 and _")
	}
	return nil
}

func (n *node) child(name string) *node {
	for _, c := range n.children {
		if c.name == name {
			return c
		}
	}
	return nil
}

// walk visits a directory before what is in it.
func (n *node) walk(visit func(*node)) {
	visit(n)
	for _, c := range n.children {
		c.walk(visit)
	}
}
