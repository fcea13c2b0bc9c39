package terminal

import (
	"fmt"
	"strings"
)

// Region is a block of lines at the end of the output that is redrawn in place. It is for one goroutine.
type Region struct {
	t     *Terminal
	drawn int
}

// Region begins a block at the cursor. On an output that is not a terminal Draw prints nothing.
func (t *Terminal) Region() *Region { return &Region{t: t} }

// Draw replaces the block. Lines are cut to the terminal's width, and their number to its height.
func (r *Region) Draw(lines []string) {
	if !r.t.live {
		return
	}
	if rows := r.t.height() - 1; len(lines) > rows && rows > 0 {
		lines = lines[:rows]
	}
	width := r.t.Width()
	var b strings.Builder
	b.WriteString(r.home())
	for _, line := range lines {
		fmt.Fprintf(&b, "%s\x1b[K\n", Cut(r.t.clean(oneLine(line)), width))
	}
	b.WriteString("\x1b[J") // the rest of a longer block
	r.drawn = len(lines)
	_, _ = r.t.out.Write([]byte(b.String()))
}

// Print puts lines permanently above the block; the next Draw draws the block again below them.
func (r *Region) Print(text string) {
	text = r.t.clean(text)
	if r.t.live {
		text = r.home() + "\x1b[J" + text
		r.drawn = 0
	}
	_, _ = r.t.out.Write([]byte(text))
}

// oneLine keeps a line from wrapping or breaking: the block's height depends on it.
func oneLine(s string) string { return strings.NewReplacer("\n", " ", "\r", " ", "\t", " ").Replace(s) }

// home moves to the block's first line.
func (r *Region) home() string {
	if r.drawn == 0 {
		return ""
	}
	return fmt.Sprintf("\x1b[%dA\r", r.drawn)
}
