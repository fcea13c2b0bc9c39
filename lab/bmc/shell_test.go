package bmc

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
)

// echoConsole is a machine that is nothing but an echoing serial port.
type echoConsole struct{ Machine }

func (echoConsole) DialConsole(context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	go func() { // ends with the pipe
		defer func() { _ = far.Close() }()
		_, _ = io.Copy(far, far)
	}()
	return near, nil
}

// FuzzShell types anything at every dialect: it ends when the input does.
func FuzzShell(f *testing.F) {
	f.Add("ilo", []byte("vsp\rhello\x1b(exit\r"))
	f.Add("supermicro", []byte("cd /system1/sol1;start;;\x1b\x1bT\x04"))
	f.Add("ilo", []byte("stop /system1/oemhp_vsp1\rvsp\r\x1b(stop /system1/oemhp_vsp1\r"))
	f.Add("idrac", []byte("console com2\r\n\x1c\x1c\x7f\x7f"))
	f.Add("xcc", []byte(strings.Repeat("console 1", 99)))
	f.Add("", []byte("anything"))
	f.Fuzz(func(t *testing.T, style string, typed []byte) {
		var screen bytes.Buffer
		c := &console{Console: Console{Access: BySSH, Style: SSHStyle(style)}, machine: echoConsole{}, number: 1}
		chunks := make(chan []byte)
		go func() {
			defer close(chunks)
			for chunk := range bytes.SplitAfterSeq(typed, []byte("\x1b")) {
				select {
				case chunks <- chunk:
				case <-t.Context().Done():
					return
				}
			}
		}()
		h := &shell{console: c, output: &screen, typed: chunks}
		h.run(t.Context(), "")
		if !c.claim(func() {}) {
			t.Error("the console is taken after the shell's end")
		}
	})
}

func TestCutKeys(t *testing.T) {
	tests := []struct {
		typed, keys, pass, rest string
		found                   bool
	}{
		{"ls\x1b(exit", "\x1b(", "ls", "exit", true},
		{"ls\x1b", "\x1b(", "ls", "\x1b", false},
		{"\x1b\x1b(", "\x1b(", "\x1b", "", true},
		{"ls", "\x1b(", "ls", "", false},
		{"\x1b(", "", "\x1b(", "", false},
		{"", "\x1c", "", "", false},
	}
	for _, tt := range tests {
		pass, rest, found := cutKeys([]byte(tt.typed), tt.keys)
		if string(pass) != tt.pass || string(rest) != tt.rest || found != tt.found {
			t.Errorf("%q by %q: %q, %q, %v", tt.typed, tt.keys, pass, rest, found)
		}
	}
}
