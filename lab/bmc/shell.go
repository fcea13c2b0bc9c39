package bmc

import (
	"bytes"
	"context"
	"io"
	"strings"
	"time"
)

// keyPause is how long a key that may begin the hang-up keys waits for the next
// one.
const keyPause = 500 * time.Millisecond

// maxLine bounds a command line of SSH; what is typed beyond it is dropped.
const maxLine = 256

// shell is the command line that a BMC shows over SSH, with the serial console
// behind it.
type shell struct {
	console *console
	output  io.Writer
	typed   <-chan []byte // closed at the end of the client's input
	rest    []byte        // typed, and not read yet
}

// run serves a shell, or one command line if it is not empty, until the client
// leaves or ctx ends.
func (h *shell) run(ctx context.Context, command string) {
	style := h.console.Style
	dialect, commands := style.dialect(), &commandLine{style: style}
	if dialect.prompt == "" {
		h.open(ctx, dialect)
		return
	}
	if command != "" {
		h.execute(ctx, dialect, commands, command)
		return
	}
	for {
		if h.print(dialect.prompt) != nil {
			return
		}
		line, ok := h.line(ctx)
		if !ok || h.execute(ctx, dialect, commands, line) {
			return
		}
	}
}

// execute runs the commands of one line, and reports whether the client leaves.
func (h *shell) execute(ctx context.Context, d dialect, commands *commandLine, line string) (leave bool) {
	for command := range strings.SplitSeq(line, ";") {
		switch commands.read(command) {
		case orderLeave:
			return true
		case orderUnknown:
			if h.print(d.unknown) != nil {
				return true
			}
		case orderFree:
			h.console.free(ctx)
		case orderConsole:
			if !h.open(ctx, d) {
				return true
			}
		}
	}
	return false
}

// open connects the client with the serial port, and reports whether it hung up
// with the dialect's keys, and stays.
func (h *shell) open(ctx context.Context, d dialect) (stays bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !h.console.claim(cancel) {
		return h.print(d.busy) == nil
	}
	defer h.console.release()
	if h.print(d.opened) != nil {
		return false
	}
	keys := make(chan []byte)
	done := make(chan struct{})
	go func() { // ends with ctx; open waits for it
		defer close(done)
		defer cancel()
		stays = h.forward(ctx, keys, d.hangUp)
	}()
	h.console.attach(ctx, terminal{output: h.output, keys: keys, stop: func() {}})
	<-done
	return stays
}

// forward passes what is typed on to the console until the client hangs up or
// leaves.
func (h *shell) forward(ctx context.Context, keys chan<- []byte, hangUp string) (hungUp bool) {
	for {
		if !h.some(ctx) {
			return false
		}
		pass, rest, found := cutKeys(h.rest, hangUp)
		if len(pass) == 0 && !found { // the beginning of hangUp
			before := len(h.rest)
			pause, cancel := context.WithTimeout(ctx, keyPause)
			open := h.more(pause)
			cancel()
			if len(h.rest) > before {
				continue
			}
			if !open && pause.Err() != context.DeadlineExceeded {
				return false
			}
			pass, rest = h.rest, nil // a key of its own
		}
		h.rest = rest
		if len(pass) > 0 {
			select {
			case keys <- pass:
			case <-ctx.Done():
				return false
			}
		}
		if found {
			return true
		}
	}
}

// cutKeys divides what was typed into what comes before the keys and what comes
// after them. Without the keys, the rest is what may be the beginning of them.
func cutKeys(typed []byte, keys string) (pass, rest []byte, found bool) {
	if keys == "" {
		return typed, nil, false
	}
	if before, after, found := bytes.Cut(typed, []byte(keys)); found {
		return before, after, true
	}
	for n := min(len(keys)-1, len(typed)); n > 0; n-- {
		if bytes.HasSuffix(typed, []byte(keys[:n])) {
			return typed[:len(typed)-n], typed[len(typed)-n:], false
		}
	}
	return typed, nil, false
}

// some waits until something is typed that was not read yet.
func (h *shell) some(ctx context.Context) bool {
	for len(h.rest) == 0 {
		if !h.more(ctx) {
			return false
		}
	}
	return true
}

// more waits for more of what is typed.
func (h *shell) more(ctx context.Context) bool {
	select {
	case typed, ok := <-h.typed:
		h.rest = append(bytes.Clone(h.rest), typed...)
		return ok
	case <-ctx.Done():
		return false
	}
}

// line reads a command line and echoes it.
func (h *shell) line(ctx context.Context) (string, bool) {
	var line []byte
	for {
		if !h.some(ctx) {
			return "", false
		}
		c := h.rest[0]
		h.rest = h.rest[1:]
		echo := ""
		switch {
		case c == '\r' || c == '\n':
			if c == '\r' && len(h.rest) > 0 && h.rest[0] == '\n' {
				h.rest = h.rest[1:]
			}
			return string(line), h.print("\r\n") == nil
		case c == 4: // ^D
			return "", false
		case (c == 8 || c == 127) && len(line) > 0:
			line, echo = line[:len(line)-1], "\b \b"
		case c >= ' ' && c < 127 && len(line) < maxLine:
			line, echo = append(line, c), string(rune(c))
		}
		if echo != "" && h.print(echo) != nil {
			return "", false
		}
	}
}

func (h *shell) print(text string) error {
	_, err := io.WriteString(h.output, text)
	return err
}
