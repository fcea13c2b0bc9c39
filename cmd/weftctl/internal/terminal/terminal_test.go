package terminal

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/internal/text"
)

func noEnv(string) string { return "" }

// live is a terminal of 80 columns and 24 rows that keeps what is written to it.
func live(out io.Writer) *Terminal {
	return &Terminal{out: out, fd: -1, live: true, colour: true, mark: newMark()}
}

func TestWhatIsNoTerminalGetsPlainLines(t *testing.T) {
	var out bytes.Buffer
	term := New(&out, noEnv)
	if term.Live() || term.Paint(Red, "x") != "x" || term.Width() != 80 {
		t.Error("a buffer is taken for a terminal")
	}
	term.Region().Draw([]string{"never"})
	p := term.Progress("upload", "rootfs", 3<<20)
	if _, err := io.Copy(io.Discard, p.Reader(strings.NewReader(strings.Repeat("x", 3<<20)))); err != nil {
		t.Fatal(err)
	}
	p.Done()
	term.Progress("upload", "kernel", 1).Abandon()
	if got := out.String(); !strings.HasPrefix(got, "upload rootfs  3.0 MiB in ") || strings.Count(got, "\n") != 1 || strings.Contains(got, "\x1b") {
		t.Errorf("%q", got)
	}
}

// screen is what a terminal shows after the cursor moves that Region makes.
func screen(t *testing.T, raw string) []string {
	t.Helper()
	lines, row := []string{""}, 0
	for len(raw) > 0 {
		switch {
		case strings.HasPrefix(raw, "\x1b["):
			end := strings.IndexAny(raw, "AKJm")
			if end < 0 {
				t.Fatalf("odd sequence %q", raw)
			}
			n := int(raw[2] - '0')
			switch raw[end] {
			case 'A':
				row -= n
				if row < 0 {
					t.Fatal("the cursor went above the block")
				}
			case 'K': // to the end of the line: what Draw wrote stays
			case 'J':
				lines = lines[:row+1]
				lines[row] = ""
			}
			raw = raw[end+1:]
		case raw[0] == '\r':
			lines[row] = ""
			raw = raw[1:]
		case raw[0] == '\n':
			if row++; row == len(lines) {
				lines = append(lines, "")
			}
			raw = raw[1:]
			if !strings.HasPrefix(raw, "\x1b[") {
				lines[row] = ""
			}
		default:
			end := strings.IndexAny(raw, "\x1b\r\n")
			if end < 0 {
				end = len(raw)
			}
			lines[row] += raw[:end]
			raw = raw[end:]
		}
	}
	return lines
}

func TestRegionIsRedrawnInPlace(t *testing.T) {
	var out bytes.Buffer
	r := live(&out).Region()
	r.Draw([]string{"a 1", "b 1"})
	r.Print("a line that stays\n")
	r.Draw([]string{"a 2", "b 2"})
	r.Draw([]string{"a 3"})
	got := strings.Join(screen(t, out.String()), "|")
	if want := "a line that stays|a 3|"; got != want {
		t.Errorf("the screen shows %q, want %q", got, want)
	}
}

func TestRegionFitsTheScreen(t *testing.T) {
	var out bytes.Buffer
	r := live(&out).Region()
	many := make([]string, 60)
	for i := range many {
		many[i] = strings.Repeat("x", 200)
	}
	r.Draw(many)
	lines := strings.Split(strings.TrimSuffix(out.String(), "\x1b[J"), "\n")
	if len(lines) != 24 { // 23 and the line of the cursor
		t.Errorf("%d lines on 24 rows", len(lines))
	}
	if n := Columns(strings.TrimSuffix(lines[0], "\x1b[K")); n > 84 {
		t.Errorf("%d columns on 80", n)
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		text  string
		width int
		want  string
	}{
		{"short", 10, "short"},
		{"exactly", 7, "exactly"},
		{"too long by far", 6, "too l…"},
		{"\x1b[31mred\x1b[0m", 3, "\x1b[31mred\x1b[0m"},
		{"\x1b[31mred and more\x1b[0m", 4, "\x1b[31mred…\x1b[0m"},
		{"äöü and more", 4, "äöü…"},
	} {
		if got := Cut(c.text, c.width); got != c.want || Columns(got) > c.width {
			t.Errorf("Cut(%q, %d) = %q, want %q", c.text, c.width, got, c.want)
		}
	}
}

func TestClean(t *testing.T) {
	if got := Clean("a\x1b[2Jb\nc\rd\u009bе\x00"); got != "a�[2Jb c d�е�" {
		t.Errorf("%q", got)
	}
}

func TestWords(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", -time.Second: "0s", 900 * time.Millisecond: "0.9s", 12 * time.Second: "12s", 200 * time.Second: "3m20s", 61 * time.Second: "1m01s",
		90 * time.Minute: "1h30m", 124 * time.Hour: "5d4h", 400 * 24 * time.Hour: "400d",
	} {
		if got := Short(d); got != want {
			t.Errorf("Short(%v) = %s, want %s", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB", 5<<30 + 1<<29: "5.5 GiB"} {
		if got := text.Size(n); got != want {
			t.Errorf("Size(%d) = %s, want %s", n, got, want)
		}
	}
	if Clock(67*time.Second) != "1:07" || Clock(3723*time.Second) != "1:02:03" {
		t.Error("Clock")
	}
	if Bar(1, 3, 6) != "██░░░░" || Bar(9, 3, 3) != "███" || Bar(0, 0, 2) != "░░" {
		t.Error("Bar")
	}
}
