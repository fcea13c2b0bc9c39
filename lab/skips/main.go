// Skips reads the output of "go test -json" and prints how many tests were
// skipped, by reason. A test that is skipped because of the machine is easily
// missed in an hour of output. That no test ran at all is an error.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "skips:", err)
		os.Exit(1)
	}
}

func run(files []string, out io.Writer) error {
	if len(files) == 0 {
		return errors.New("usage: skips FILE…, each written by go test -json")
	}
	c := count{skipped: map[string][]string{}, output: map[test]string{}}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = c.read(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
	if _, err := io.WriteString(out, c.report()); err != nil {
		return err
	}
	if c.run == 0 {
		return errors.New("no test ran")
	}
	return nil
}

type test struct{ pkg, name string }

// event is a line of test2json; see "go doc test2json".
type event struct{ Action, Package, Test, Output string }

type count struct {
	run     int                 // tests and subtests
	skipped map[string][]string // names by reason
	output  map[test]string     // of running tests
}

func (c *count) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("line %.80q: %w", lines.Text(), err)
		}
		if e.Test != "" {
			c.add(e)
		}
	}
	return lines.Err()
}

func (c *count) add(e event) {
	t := test{e.Package, e.Test}
	switch e.Action {
	case "output":
		c.output[t] += e.Output
	case "pass", "fail":
		c.run++
		delete(c.output, t)
	case "skip":
		why := reason(c.output[t])
		c.skipped[why] = append(c.skipped[why], e.Test)
		delete(c.output, t)
	}
}

// reason returns the last line that the test itself logged.
func reason(output string) string {
	said := regexp.MustCompile(`(?m)^\s+\w+\.go:\d+: (.+)$`).FindAllStringSubmatch(output, -1)
	if len(said) == 0 {
		return "no reason"
	}
	return strings.TrimSpace(said[len(said)-1][1])
}

func (c *count) report() string {
	var b strings.Builder
	total := 0
	for _, names := range c.skipped {
		total += len(names)
	}
	fmt.Fprintf(&b, "%d tests run, %d skipped\n", c.run, total)
	for _, why := range slices.SortedFunc(maps.Keys(c.skipped), func(x, y string) int {
		return cmp.Or(cmp.Compare(len(c.skipped[y]), len(c.skipped[x])), cmp.Compare(x, y))
	}) {
		names := slices.Sorted(slices.Values(c.skipped[why]))
		fmt.Fprintf(&b, "%4d  %s: %s\n", len(names), why, strings.Join(slices.Compact(names), ", "))
	}
	return b.String()
}
