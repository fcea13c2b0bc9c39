package terminal

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/rackweft/rackweft/internal/text"
)

// redrawEvery limits the cost of redrawing a bar.
const redrawEvery = 100 * time.Millisecond

// Progress shows the progress of one long step: a bar on a terminal, elsewhere one line at its end.
type Progress struct {
	t     *Terminal
	verb  string
	what  string
	whole int64
	start time.Time

	mu     sync.Mutex // an HTTP transport may still read after the step has failed
	region *Region
	done   int64
	next   time.Time
	ended  bool
}

// Progress begins a step of whole bytes, such as "upload" of "rootfs".
func (t *Terminal) Progress(verb, what string, whole int64) *Progress {
	now := time.Now()
	p := &Progress{region: t.Region(), t: t, verb: verb, what: what, whole: whole, start: now, next: now}
	p.draw()
	return p
}

// Reader counts what is read from r as done.
func (p *Progress) Reader(r io.Reader) io.Reader { return counter{r, p} }

type counter struct {
	r io.Reader
	p *Progress
}

func (c counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.p.add(int64(n))
	return n, err
}

func (p *Progress) add(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	if now := time.Now(); !p.ended && now.After(p.next) {
		p.next = now.Add(redrawEvery)
		p.draw()
	}
}

// end replaces the bar with its final line.
func (p *Progress) end(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.region.Print(text)
}

func (p *Progress) draw() {
	percent := int64(100)
	if p.whole > 0 {
		percent = min(p.done, p.whole) * 100 / p.whole
	}
	p.region.Draw([]string{fmt.Sprintf("%s %s  %s %3d%%  %s of %s", p.verb, p.what,
		p.t.Paint(Cyan, Bar(p.done, p.whole, 24)), percent, text.Size(p.done), text.Size(p.whole))})
}

// Done ends the step and leaves one line that says so.
func (p *Progress) Done() {
	p.end(fmt.Sprintf("%s %s  %s in %s\n", p.verb, p.what, text.Size(p.whole), Short(time.Since(p.start))))
}

// Abandon ends the step without output: the error that ended it is reported elsewhere.
func (p *Progress) Abandon() { p.end("") }

// Short writes a duration for people in at most two units, such as 3m20s or 5d4h.
func Short(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	days, hours, minutes, seconds := int(d.Hours())/24, int(d.Hours())%24, int(d.Minutes())%60, int(d.Seconds())%60
	switch {
	case days > 0 && hours > 0 && days < 10:
		return fmt.Sprintf("%dd%dh", days, hours)
	case days > 0:
		return fmt.Sprintf("%dd", days)
	case hours > 0:
		return fmt.Sprintf("%dh%dm", hours, minutes)
	case minutes > 0:
		return fmt.Sprintf("%dm%02ds", minutes, seconds)
	case d >= 10*time.Second || d == 0:
		return fmt.Sprintf("%ds", seconds)
	}
	return fmt.Sprintf("%.1fs", d.Seconds())
}

// Clock writes a running time, such as 1:07 or 1:02:03.
func Clock(d time.Duration) string {
	s := int(max(d, 0).Seconds())
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}
