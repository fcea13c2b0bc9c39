// Package manifest owns the files that people write: it reads YAML and JSON, keeps where every field
// stands, and shows a fault at a JSON pointer as a file, a line and the line's text.
package manifest
