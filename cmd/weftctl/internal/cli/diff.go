package cli

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/manifest"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

func (a *applyCommands) diffCommand() *cobra.Command {
	var files []string
	c := &cobra.Command{
		Use:   "diff -f FILE|DIRECTORY|-",
		Short: "Show what apply would change",
		Long: `diff compares files with the objects at bootd: spec, labels and annotations, with defaults filled in. Of a Secret
only the keys are compared: its values cannot be read back. Exit code 0: no difference; 1: a difference, or it failed.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			inputs, err := a.readInputs(c.Context(), files)
			if err != nil {
				return err
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			return a.diff(c.Context(), client, inputs)
		},
	}
	a.filesFlag(c, &files)
	return c
}

func (a *applyCommands) diff(ctx context.Context, client *api.Client, inputs []input) error {
	differs := false
	for _, in := range inputs {
		stored, err := client.Get(ctx, in.kind, in.object.Meta().Name)
		if err != nil && !api.IsStatus(err, http.StatusNotFound) {
			return fmt.Errorf("get %s: %w", in.title(), err)
		}
		if err != nil {
			stored = nil
		}
		text, err := difference(stored, in)
		if err != nil {
			return err
		}
		if text != "" {
			differs = true
			if err := a.printf("%s", a.paintDiff(text)); err != nil {
				return err
			}
		}
	}
	if differs {
		return errQuiet
	}
	return nil
}

func difference(stored api.Object, in input) (string, error) {
	var before []byte
	if stored != nil {
		var err error
		if before, err = wishYAML(stored); err != nil {
			return "", err
		}
	}
	after, err := wishYAML(in.object)
	if err != nil {
		return "", err
	}
	return unified(in.title()+" at bootd", fmt.Sprintf("%s in %s", in.title(), in.document.File), string(before), string(after)), nil
}

// wishYAML holds the fields of an object that a person sets; of a Secret, its keys.
func wishYAML(o api.Object) ([]byte, error) {
	w, err := wishOf(o)
	if err != nil {
		return nil, err
	}
	if secret, ok := o.(*api.Secret); ok {
		if w.Spec, err = api.Encode(maskedSecret(secret)); err != nil {
			return nil, err
		}
	}
	return manifest.YAML(w)
}

func maskedSecret(s *api.Secret) any {
	data := map[string]string{}
	for _, keys := range []map[string]string{s.Spec.Data, s.Status.Digests} {
		for key := range keys {
			data[key] = "***"
		}
	}
	spec := map[string]any{"data": data}
	if s.Spec.Uses != nil {
		spec["uses"] = s.Spec.Uses
	}
	return spec
}

func (a *applyCommands) paintDiff(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		colour := terminal.Plain
		switch line[0] {
		case '+':
			colour = terminal.Green
		case '-':
			colour = terminal.Red
		case '@':
			colour = terminal.Cyan
		}
		b.WriteString(a.out.Paint(colour, strings.TrimSuffix(line, "\n")) + "\n")
	}
	return b.String()
}

// contextLines is how many lines of context surround each change of a unified diff.
const contextLines = 3

// edit is one line of a diff: kept (' '), removed ('-') or added ('+').
type edit struct {
	mark byte
	line string
}

// unified is a diff in the unified format; "" when there is no difference.
func unified(oldName, newName, oldText, newText string) string {
	if oldText == newText {
		return ""
	}
	edits := edits(splitLines(oldText), splitLines(newText))
	var b strings.Builder
	fmt.Fprintf(&b, "--- %s\n+++ %s\n", oldName, newName)
	for start := 0; start < len(edits); {
		first := slices.IndexFunc(edits[start:], func(e edit) bool { return e.mark != ' ' })
		if first < 0 {
			break
		}
		from := max(start, start+first-contextLines)
		to := hunkEnd(edits, start+first)
		writeHunk(&b, edits, from, to)
		start = to
	}
	return b.String()
}

// hunkEnd is the end of the last change that is closer to the one before it than twice the context.
func hunkEnd(edits []edit, first int) int {
	last := first
	for i := first; i < len(edits) && i-last <= 2*contextLines; i++ {
		if edits[i].mark != ' ' {
			last = i
		}
	}
	return min(last+1+contextLines, len(edits))
}

func writeHunk(b *strings.Builder, edits []edit, from, to int) {
	oldLine, newLine := 1, 1
	for _, e := range edits[:from] {
		oldLine, newLine = advance(e, oldLine, newLine)
	}
	oldEnd, newEnd := oldLine, newLine
	for _, e := range edits[from:to] {
		oldEnd, newEnd = advance(e, oldEnd, newEnd)
	}
	fmt.Fprintf(b, "@@ -%s +%s @@\n", span(oldLine, oldEnd-oldLine), span(newLine, newEnd-newLine))
	for _, e := range edits[from:to] {
		fmt.Fprintf(b, "%c%s\n", e.mark, e.line)
	}
}

func advance(e edit, oldLine, newLine int) (int, int) {
	if e.mark != '+' {
		oldLine++
	}
	if e.mark != '-' {
		newLine++
	}
	return oldLine, newLine
}

// span is a range of a hunk; an empty one begins before its line, as in diff(1).
func span(line, n int) string {
	if n == 0 {
		line--
	}
	return fmt.Sprintf("%d,%d", line, n)
}

func splitLines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(s, "\n"), "\n")
}

// edits is the shortest edit script from one list of lines to the other, by longest common subsequence: objects
// have hundreds of lines at most.
func edits(before, after []string) []edit {
	common := make([][]int, len(before)+1) // longest common subsequence of before[i:] and after[j:]
	for i := range common {
		common[i] = make([]int, len(after)+1)
	}
	for i := len(before) - 1; i >= 0; i-- {
		for j := len(after) - 1; j >= 0; j-- {
			if before[i] == after[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var list []edit
	i, j := 0, 0
	for i < len(before) || j < len(after) {
		switch {
		case i < len(before) && j < len(after) && before[i] == after[j]:
			list = append(list, edit{' ', before[i]})
			i, j = i+1, j+1
		case j == len(after) || i < len(before) && common[i+1][j] >= common[i][j+1]:
			list = append(list, edit{'-', before[i]})
			i++
		default:
			list = append(list, edit{'+', after[j]})
			j++
		}
	}
	return list
}
