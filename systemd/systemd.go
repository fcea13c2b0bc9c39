// Package systemd owns what rackweft has to do with systemd: the unit files of
// its daemons, readiness, status lines and the watchdog.
package systemd

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"
)

//go:embed *.service
var units embed.FS

// Unit returns the text of a unit file, such as "nodeagent.service".
func Unit(name string) (string, error) {
	text, err := units.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("no unit is called %q: there are %s", name, strings.Join(Units(), ", "))
	}
	return string(text), nil
}

// Units names the unit files, sorted.
func Units() []string {
	names, err := fs.Glob(units, "*.service")
	if err != nil {
		panic("systemd: " + err.Error()) // the pattern is a constant
	}
	return names
}
