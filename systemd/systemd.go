// Package systemd is rackweft's interface to systemd: the unit files of its
// daemons, readiness, status lines and the watchdog.
package systemd

import (
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

//go:embed *.service
var units embed.FS

// Unit returns the text of a unit file, such as "nodeagent.service".
func Unit(name string) (string, error) {
	text, err := units.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("no unit %q: there are %s", name, strings.Join(Units(), ", "))
	}
	return string(text), nil
}

// Properties returns the settings of a unit file's [Service] section as
// properties of a transient unit (see Service), in order and except those
// named.
func Properties(unit string, without ...string) ([]string, error) {
	text, err := Unit(unit)
	if err != nil {
		return nil, err
	}
	var list []string
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			section = line
		case section == "[Service]":
			name, _, ok := strings.Cut(line, "=")
			if !ok || strings.HasSuffix(line, "\\") {
				return nil, fmt.Errorf("%s: %q is not one setting on one line", unit, line)
			}
			if !slices.Contains(without, name) {
				list = append(list, line)
			}
		}
	}
	return list, nil
}

// Units names the unit files, sorted.
func Units() []string {
	names, err := fs.Glob(units, "*.service")
	if err != nil {
		panic("systemd: " + err.Error()) // the pattern is a constant
	}
	return names
}
