package console

import (
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/rackweft/rackweft/internal/text"
)

const (
	lineLimit     = 400 // bytes of a line that are kept
	sequenceLimit = 256 // bytes of a control sequence; a longer one is taken as text
)

// state is the position of a terminal within a control sequence (ECMA-48).
type state int

const (
	inText   state = iota
	escaped        // after ESC
	inCSI          // ESC [ … a letter
	inString       // ESC ] … BEL or ESC \, and the like
	oneMore        // of ESC ( and the like, one byte follows
)

// cleaner makes lines of text from what a serial port sends. It keeps what a person would have read: control sequences go;
// what moves the cursor to another line ends the line; what is written over after a carriage return counts as written once.
type cleaner struct {
	state    state
	sequence int // bytes of the sequence
	line     []byte
	over     bool // a carriage return came: the next character begins the line again
}

// write takes what was sent, and calls emit with each line that has ended and is not blank.
func (c *cleaner) write(sent []byte, emit func(line string)) {
	for _, b := range sent {
		if c.state != inText {
			c.control(b, emit)
			continue
		}
		switch {
		case b == 0x1b:
			c.state, c.sequence = escaped, 0
		case b == '\n':
			c.end(emit)
		case b == '\r':
			c.over = true
		case b == '\b':
			_, size := utf8.DecodeLastRune(c.line)
			c.line = c.line[:len(c.line)-size]
		case b == '\t':
			c.add(' ')
		case b < ' ' || b == 0x7f:
		default:
			c.add(b)
		}
	}
}

// control takes a byte of a control sequence.
func (c *cleaner) control(b byte, emit func(string)) {
	c.sequence++
	if c.sequence > sequenceLimit || b == 0x18 || b == 0x1a { // CAN and SUB end any
		c.state = inText
		return
	}
	switch c.state {
	case escaped:
		c.escape(b, emit)
	case inCSI:
		switch {
		case b == 0x1b:
			c.state = escaped
		case b >= 0x40 && b <= 0x7e:
			c.state = inText
			c.move(b, emit)
		}
	case inString:
		switch b {
		case 0x07:
			c.state = inText
		case 0x1b: // of ESC \
			c.state = oneMore
		}
	case oneMore:
		c.state = inText
	}
}

func (c *cleaner) escape(b byte, emit func(string)) {
	c.state = inText
	switch b {
	case '[':
		c.state = inCSI
	case ']', 'P', 'X', '^', '_':
		c.state = inString
	case '(', ')', '*', '+', '-', '.', '/', '#', '%', ' ':
		c.state = oneMore
	case 0x1b:
		c.state = escaped
	case 'c', 'D', 'E', 'M':
		c.end(emit)
	}
}

// move follows a control sequence that may move the cursor.
func (c *cleaner) move(final byte, emit func(string)) {
	switch final {
	case 'A', 'B', 'E', 'F', 'H', 'f', 'd', 'J':
		c.end(emit)
	case 'C', 'G':
		c.add(' ')
	}
}

func (c *cleaner) add(b byte) {
	if c.over {
		c.line, c.over = c.line[:0], false
	}
	if len(c.line) <= lineLimit { // one more, so that it is seen to be cut
		c.line = append(c.line, b)
	}
}

func (c *cleaner) end(emit func(string)) {
	if line := readable(c.line); line != "" {
		emit(line)
	}
	c.line, c.over = c.line[:0], false
}

// unfinished is the line that has not ended.
func (c *cleaner) unfinished() string { return readable(c.line) }

// readable makes one line harmless, and masks what looks like a secret.
func readable(line []byte) string {
	return text.Clip(mask(strings.TrimSpace(text.Line(string(line)))), lineLimit)
}

// masked replaces a secret.
const masked = "(secret)"

// long is what may be a secret of a BootAttempt, which URLs of bootd and the asset tag carry: base64url of 43 characters, or
// base32 of 32.
var long = regexp.MustCompile(`[A-Za-z0-9_-]{32,}`)

// mask replaces what looks like a secret: long words, but no digests, UUIDs and other words without capitals.
func mask(line string) string {
	return long.ReplaceAllStringFunc(line, func(word string) string {
		if word == strings.ToLower(word) || strings.Trim(word, "0123456789ABCDEF-") == "" {
			return word
		}
		return masked
	})
}
