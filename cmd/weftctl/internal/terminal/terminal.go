// Package terminal owns what only a terminal is given: colours, progress bars and lines that are redrawn in
// place. On anything else the same calls print plain lines.
package terminal

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// Terminal is an output that may be a terminal.
type Terminal struct {
	out    io.Writer
	fd     int
	live   bool
	colour bool
}

// New looks at what out is. NO_COLOR (no-color.org) and TERM=dumb are respected.
func New(out io.Writer, env func(string) string) *Terminal {
	t := &Terminal{out: out}
	f, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || env("TERM") == "dumb" {
		return t
	}
	t.fd, t.live = int(f.Fd()), true
	t.colour = env("NO_COLOR") == ""
	return t
}

// Live reports whether lines can be redrawn.
func (t *Terminal) Live() bool { return t.live }

// Write implements io.Writer.
func (t *Terminal) Write(p []byte) (int, error) { return t.out.Write(p) }

// Width is the number of columns; 80 where nobody knows.
func (t *Terminal) Width() int {
	if t.live {
		if w, _, err := term.GetSize(t.fd); err == nil && w > 0 {
			return w
		}
	}
	return 80
}

// height is the number of rows; 24 where nobody knows.
func (t *Terminal) height() int {
	if t.live {
		if _, h, err := term.GetSize(t.fd); err == nil && h > 0 {
			return h
		}
	}
	return 24
}

// Colour is one of the eight that every terminal has.
type Colour int

// The colours in use (ECMA-48, SGR).
const (
	Plain  Colour = 0
	Bold   Colour = 1
	Dim    Colour = 2
	Red    Colour = 31
	Green  Colour = 32
	Yellow Colour = 33
	Cyan   Colour = 36
)

// Paint colours text, if colours are wanted here.
func (t *Terminal) Paint(c Colour, text string) string {
	if !t.colour || c == Plain || text == "" {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", c, text)
}

// Columns counts the columns that text takes, colours not counted.
func Columns(text string) int {
	n := 0
	for len(text) > 0 {
		if rest, ok := skipEscape(text); ok {
			text = rest
			continue
		}
		_, size := utf8.DecodeRuneInString(text)
		text = text[size:]
		n++
	}
	return n
}

// Cut shortens text to at most width columns and keeps its colours.
func Cut(text string, width int) string {
	if Columns(text) <= width {
		return text
	}
	var b strings.Builder
	coloured := false
	for n := 0; len(text) > 0 && n < width-1; {
		if rest, ok := skipEscape(text); ok {
			b.WriteString(text[:len(text)-len(rest)])
			text, coloured = rest, true
			continue
		}
		_, size := utf8.DecodeRuneInString(text)
		b.WriteString(text[:size])
		text = text[size:]
		n++
	}
	b.WriteString("…")
	if coloured {
		b.WriteString("\x1b[0m")
	}
	return b.String()
}

// skipEscape skips one SGR sequence at the start of text.
func skipEscape(text string) (string, bool) {
	if !strings.HasPrefix(text, "\x1b[") {
		return text, false
	}
	end := strings.IndexByte(text, 'm')
	if end < 0 {
		return text, false
	}
	return text[end+1:], true
}

// Clean replaces control characters in text that came from outside, so that it cannot move the cursor.
func Clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < 0x20 || r >= 0x7f && r < 0xa0 || r == utf8.RuneError:
			return -1
		}
		return r
	}, text)
}

// Bar draws how much of a whole is done in width columns.
func Bar(done, whole int64, width int) string {
	filled := 0
	if whole > 0 {
		filled = int(min(done, whole) * int64(width) / whole)
	}
	return strings.Repeat("█", filled) + strings.Repeat("░", width-filled)
}
