package console

import (
	"time"

	"github.com/rackweft/rackweft/api"
)

// What is kept of all consoles together, and of each.
const (
	totalBytes = 16 << 20
	portBytes  = 32 << 10
	portLines  = 400
)

// lines are the last lines of a console.
type lines struct {
	kept  []api.ConsoleLine
	bytes int
}

// size is about what a line takes.
func size(l api.ConsoleLine) int { return len(l.Text) + 64 }

func (l *lines) add(line api.ConsoleLine) {
	l.kept = append(l.kept, line)
	l.bytes += size(line)
	for len(l.kept) > portLines || l.bytes > portBytes {
		l.bytes -= size(l.kept[0])
		l.kept[0] = api.ConsoleLine{} // its text is free now
		l.kept = l.kept[1:]
	}
}

// heard adds what a serial port has sent.
func (p *port) heard(sent []byte, now time.Time) {
	p.clean.write(sent, func(text string) {
		p.log.add(api.ConsoleLine{Time: now.UTC(), Attempt: p.attempt, Text: text})
	})
	p.last = now
}

// endLine ends the line that was begun.
func (p *port) endLine() {
	if begun := p.clean.unfinished(); begun != "" {
		p.log.add(api.ConsoleLine{Time: p.last.UTC(), Attempt: p.attempt, Text: begun})
	}
	p.clean = cleaner{}
}

// text are the last n lines, with the one that has not ended.
func (p *port) text(n int) []api.ConsoleLine {
	all := append([]api.ConsoleLine(nil), p.log.kept...)
	if begun := p.clean.unfinished(); begun != "" {
		all = append(all, api.ConsoleLine{Time: p.last.UTC(), Attempt: p.attempt, Text: begun})
	}
	return all[max(0, len(all)-n):]
}
