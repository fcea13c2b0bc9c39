// Package manifest owns the files that people write: it reads YAML and JSON, records the position of every field,
// and shows a fault at a JSON pointer as a file, a line and the line's text.
package manifest
