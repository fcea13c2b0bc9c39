package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile limits the size of a file: 64 MiB.
const maxFile = 64 << 20

// Document is one YAML or JSON document that should be an object.
type Document struct {
	// File is the path as it was given; "stdin" for standard input.
	File string
	// Dir is what relative paths inside the document are relative to.
	Dir string
	// JSON is the document's value.
	JSON []byte

	root  *yaml.Node
	lines []string
}

// Read reads the documents of a file, of each .yaml, .yml and .json file of a directory, or of stdin when
// path is "-". A syntax error is a Fault.
func Read(path string, stdin io.Reader) ([]*Document, error) {
	if path == "-" {
		raw, err := io.ReadAll(io.LimitReader(stdin, maxFile+1))
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return Parse("stdin", raw)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	if !info.IsDir() {
		return readFile(path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	var all []*Document
	found := false
	for _, e := range entries { // sorted by name
		if e.IsDir() || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		found = true
		documents, err := readFile(filepath.Join(path, e.Name()))
		if err != nil {
			return nil, err
		}
		all = append(all, documents...)
	}
	if !found {
		return nil, fmt.Errorf("read manifests: %s holds no .yaml, .yml or .json file", path)
	}
	return all, nil
}

func readFile(path string) ([]*Document, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return Parse(path, raw)
}

// Parse reads the documents of raw; file is its name, and relative paths inside are relative to the file.
// Empty documents are skipped, and a list of objects counts as its objects.
func Parse(file string, raw []byte) ([]*Document, error) {
	if len(raw) > maxFile {
		return nil, fmt.Errorf("read %s: more than %d MiB", file, maxFile>>20)
	}
	dir := filepath.Dir(file)
	lines := strings.Split(string(raw), "\n")
	var all []*Document
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	for {
		var top yaml.Node
		err := decoder.Decode(&top)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, syntaxFault(file, lines, err)
		}
		if len(top.Content) == 0 || top.Content[0].ShortTag() == "!!null" {
			continue
		}
		for _, root := range items(top.Content[0]) {
			d := &Document{File: file, Dir: dir, root: root, lines: lines}
			if d.JSON, err = d.encode(); err != nil {
				return nil, err
			}
			all = append(all, d)
		}
	}
}

// items are the objects of a list, as `get -o json` writes it, or the one document.
func items(root *yaml.Node) []*yaml.Node {
	kind, list := child(root, "kind"), child(root, "items")
	if kind == nil || list == nil || !strings.HasSuffix(kind.Value, "List") || list.Kind != yaml.SequenceNode {
		return []*yaml.Node{root}
	}
	return list.Content
}

var yamlLine = regexp.MustCompile(`line (\d+): `)

// syntaxFault gives yaml's error a position.
func syntaxFault(file string, lines []string, err error) Fault {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 0
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = strings.Replace(text, m[0], "", 1)
		if strings.HasPrefix(text, "did not find expected") {
			line++ // yaml counts the lines of these errors from 0
		}
	}
	return Fault{File: file, Line: line, Text: lineText(lines, line), Message: "not YAML: " + text}
}

func lineText(lines []string, line int) string {
	if line < 1 || line > len(lines) {
		return ""
	}
	return strings.TrimRight(lines[line-1], "\r \t")
}
