// Package show owns the presentation of objects: the columns of each kind, aligned and coloured tables, the
// sections of describe, and the help on each field.
package show

import (
	"fmt"
	"io"
	"strings"

	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

// Table aligns rows under a header. Cells may be coloured.
type Table struct {
	Header []string
	Rows   [][]string
	widths []int
}

// Print writes the header and the rows.
func (t *Table) Print(w io.Writer, bold func(string) string) error {
	header := make([]string, len(t.Header))
	for i := range header {
		header[i] = bold(t.Header[i])
	}
	t.measure(header)
	for _, row := range t.Rows {
		t.measure(row)
	}
	return t.lines(w, append([][]string{header}, t.Rows...)...)
}

// cell is one line: a cell with another machine's text must not look like a row of its own.
func cell(s string) string { return strings.NewReplacer("\n", " ", "\r", " ", "\t", " ").Replace(s) }

// Add writes another row below those already printed.
func (t *Table) Add(w io.Writer, row []string) error {
	t.measure(row)
	return t.lines(w, row)
}

func (t *Table) measure(row []string) {
	for i, text := range row {
		if i == len(t.widths) {
			t.widths = append(t.widths, 0)
		}
		t.widths[i] = max(t.widths[i], terminal.Columns(text))
	}
}

const gap = 3

func (t *Table) lines(w io.Writer, rows ...[]string) error {
	var b strings.Builder
	for _, row := range rows {
		for i, text := range row {
			b.WriteString(cell(text))
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", t.widths[i]-terminal.Columns(text)+gap))
			}
		}
		b.WriteByte('\n')
	}
	_, err := fmt.Fprint(w, b.String())
	return err
}
