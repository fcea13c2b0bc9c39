package api

import (
	"strings"
	"testing"
	"time"
)

func TestGuestExecCheck(t *testing.T) {
	for name, c := range map[string]struct {
		e    GuestExec
		want string
	}{
		"good":            {GuestExec{Command: []string{"sh", ""}, Env: []string{"A=b"}, Stdin: make([]byte, MaxExecStdin), Timeout: Duration(MaxExecTimeout)}, ""},
		"nothing":         {GuestExec{}, "name a program"},
		"an empty word":   {GuestExec{Command: []string{""}}, "name a program"},
		"a NUL":           {GuestExec{Command: []string{"a", "b\x00c"}}, "NUL"},
		"a NUL in a name": {GuestExec{Command: []string{"a"}, Env: []string{"\x00"}}, "NUL"},
		"too long":        {GuestExec{Command: []string{"a", strings.Repeat("b", MaxExecCommand)}}, "pass a script as stdin"},
		"too much":        {GuestExec{Command: []string{"a"}, Stdin: make([]byte, MaxExecStdin+1)}, "stdin has 1048577 bytes"},
		"too patient":     {GuestExec{Command: []string{"a"}, Timeout: Duration(MaxExecTimeout + time.Second)}, "1h0m0s"},
		"impatient":       {GuestExec{Command: []string{"a"}, Timeout: -1}, "timeout"},
	} {
		err := c.e.Check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// A display is a q35's, and that has one unless it is told otherwise.
func TestGuestDisplay(t *testing.T) {
	for _, c := range []struct{ machine, display, want, fault string }{
		{"", "", "vga", ""},
		{"q35", "none", "none", ""},
		{"microvm", "", "none", ""},
		{"microvm", "vga", "vga", "a microvm has no display"},
		{"q35", "gtk", "gtk", "/spec/display"},
	} {
		g := &Guest{Spec: GuestSpec{Network: "n", Image: "i", CPUs: 1, Memory: Bytes(1 << 30), Machine: c.machine, Display: c.display}}
		g.Metadata.Name = "web"
		g.SetDefaults()
		err := g.Validate().OrNil()
		if g.Spec.Display != c.want || (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%+v has display %q: %v", c, g.Spec.Display, err)
		}
	}
}
