// Package terminal owns terminal output: colours, progress bars and lines that are redrawn in place. On anything
// else the same calls print plain lines.
package terminal

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/rackweft/rackweft/internal/text"
)

// Terminal is an output that may be a terminal.
type Terminal struct {
	out    io.Writer
	fd     int
	live   bool
	colour bool
	// mark is part of each escape sequence that this Terminal makes. Text from other machines cannot contain a
	// valid sequence, because they do not know the mark.
	mark string
}

// New inspects out. NO_COLOR (no-color.org) and TERM=dumb are respected.
func New(out io.Writer, env func(string) string) *Terminal {
	t := &Terminal{out: out}
	f, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || env("TERM") == "dumb" {
		return t
	}
	t.fd, t.live = int(f.Fd()), true
	t.colour = env("NO_COLOR") == ""
	t.mark = newMark()
	return t
}

// newMark is an unguessable parameter of an escape sequence.
func newMark() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return strconv.FormatUint(binary.BigEndian.Uint64(b[:]), 10)
}

// Live reports whether lines can be redrawn.
func (t *Terminal) Live() bool { return t.live }

// Write implements io.Writer. All text from other machines is displayed through it: besides the Terminal's own
// colours, newlines and tabs, it writes only what text.Shown passes.
func (t *Terminal) Write(p []byte) (int, error) {
	if _, err := io.WriteString(t.out, t.clean(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteData writes a document for programs, unchanged unless the output is a terminal.
func (t *Terminal) WriteData(p []byte) error {
	if t.live {
		_, err := t.Write(p)
		return err
	}
	_, err := t.out.Write(p)
	return err
}

// clean replaces characters that must not be shown, and removes the mark from the Terminal's own escape sequences.
func (t *Terminal) clean(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		if rest, ok := t.own(s); ok {
			own := s[:len(s)-len(rest)]
			b.WriteString("\x1b[" + own[strings.LastIndexByte(own, ';')+1:])
			s = rest
			continue
		}
		r, size := utf8.DecodeRuneInString(s)
		if r == '\n' || r == '\t' || text.Shown(r) || strings.HasPrefix(s, "\r\n") {
			b.WriteRune(r)
		} else {
			b.WriteRune(text.Replacement)
		}
		s = s[size:]
	}
	return b.String()
}

// own skips one escape sequence made by Paint.
func (t *Terminal) own(s string) (rest string, ok bool) {
	if t.mark == "" || !strings.HasPrefix(s, "\x1b["+t.mark+";") {
		return s, false
	}
	return skipEscape(s)
}

// Width is the number of columns. Default: 80.
func (t *Terminal) Width() int {
	if t.live {
		if w, _, err := term.GetSize(t.fd); err == nil && w > 0 {
			return w
		}
	}
	return 80
}

// height is the number of rows. Default: 24.
func (t *Terminal) height() int {
	if t.live {
		if _, h, err := term.GetSize(t.fd); err == nil && h > 0 {
			return h
		}
	}
	return 24
}

// Colour is one of the eight colours that every terminal has.
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

// Paint colours text, if colours are enabled.
func (t *Terminal) Paint(c Colour, text string) string {
	if !t.colour || c == Plain || text == "" {
		return text
	}
	return fmt.Sprintf("\x1b[%[1]s;%[2]dm%[3]s\x1b[%[1]s;0m", t.mark, c, text)
}

// Columns counts the columns that text occupies, without its colour sequences.
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
	reset := ""
	for n := 0; len(text) > 0 && n < width-1; {
		if rest, ok := skipEscape(text); ok {
			escape := text[:len(text)-len(rest)]
			b.WriteString(escape)
			text, reset = rest, escape[:strings.LastIndexAny(escape, "[;")+1]+"0m" // with the same mark
			continue
		}
		_, size := utf8.DecodeRuneInString(text)
		b.WriteString(text[:size])
		text = text[size:]
		n++
	}
	b.WriteString("…")
	return b.String() + reset
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

// Clean makes one line of text from outside. It also removes colours: paint afterwards.
func Clean(s string) string { return text.Line(s) }

// Bar draws the fraction that is done in width columns.
func Bar(done, whole int64, width int) string {
	filled := 0
	if whole > 0 {
		filled = int(min(done, whole) * int64(width) / whole)
	}
	return strings.Repeat("█", filled) + strings.Repeat("░", width-filled)
}
