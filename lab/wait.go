package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

// PhaseReader reads the phase of a machine from bootd's API. An error does not
// end a wait, because bootd may be restarting.
type PhaseReader func(ctx context.Context, machine string) (string, error)

// PhaseFrom reads phases through a client of bootd's API.
func PhaseFrom(c *api.Client) PhaseReader {
	return func(ctx context.Context, machine string) (string, error) {
		m, err := api.Get[api.Machine](ctx, c, machine)
		if err != nil {
			return "", err
		}
		return string(m.Status.Phase), nil
	}
}

const tailLines = 40

// WaitPhase waits until the API reports that the machine is in phase. It gives
// up when ctx ends, or when the machine is Failed instead; its error then
// contains the last lines of the console and of bootd's log.
func (r *Rack) WaitPhase(ctx context.Context, read PhaseReader, machine, phase string) error {
	m := r.Machine(machine)
	if m == nil {
		return fmt.Errorf("wait for %s: the rack has no such machine", machine)
	}
	last, lastErr := "", error(nil)
	for {
		now, err := read(ctx, machine)
		if err == nil {
			last = now
		}
		if ctx.Err() == nil {
			lastErr = err
		}
		if err == nil && now == phase {
			return nil
		}
		if err == nil && now == string(api.PhaseFailed) {
			return r.explain(m, fmt.Errorf("machine %s is Failed, not %s", machine, phase))
		}
		if err := wait.For(ctx, 250*time.Millisecond); err != nil {
			return r.explain(m, errors.Join(fmt.Errorf("machine %s is %q, not %s: %w", machine, last, phase, err), lastErr))
		}
	}
}

// Explain adds diagnostics to an error about a machine: the last lines of its
// console and of bootd's log.
func (r *Rack) Explain(machine string, err error) error {
	m := r.Machine(machine)
	if m == nil {
		return err
	}
	return r.explain(m, err)
}

func (r *Rack) explain(m *Machine, err error) error {
	return fmt.Errorf("%w\n%s\n%s", err, tailReport(m.ConsoleLog(), 0), tailReport(r.BootdLog(), 0))
}

// tailReport returns the end of a log, of what was written after the first from
// bytes.
func tailReport(path string, from int64) string {
	tail, err := tailFile(path, from, tailLines)
	if err != nil {
		tail = err.Error()
	}
	return fmt.Sprintf("--- the last %d lines of %s:\n%s", tailLines, path, tail)
}

func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// tailFile returns the last n lines of a file, of those after its first from
// bytes, made safe for a terminal; "" if the file does not exist.
func tailFile(path string, from int64, n int) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	const window = 64 << 10
	if _, err := f.Seek(max(from, fileSize(path)-window), io.SeekStart); err != nil {
		return "", err
	}
	body, err := io.ReadAll(f)
	if err != nil {
		return "", err
	}
	return tail(body, n), nil
}

// tail removes the firmware's cursor movements, so that a boot's console does
// not repaint the reader's.
func tail(body []byte, n int) string {
	var lines [][]byte
	for line := range bytes.SplitSeq(plainText(body), []byte("\n")) {
		line = bytes.TrimRight(line, " ")
		if len(line) > 0 {
			lines = append(lines, line)
		}
	}
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return string(bytes.Join(lines, []byte("\n")))
}

// plainText removes control characters and escape sequences (ECMA-48 CSI: ESC [ ... final byte).
func plainText(body []byte) []byte {
	plain := make([]byte, 0, len(body))
	for i := 0; i < len(body); i++ {
		c := body[i]
		switch {
		case c == 0x1b && i+1 < len(body) && body[i+1] == '[':
			for i += 2; i < len(body) && (body[i] < 0x40 || body[i] > 0x7e); i++ {
			}
		case c == 0x1b:
			i++
		case c == '\n' || c == '\t' || c >= 0x20 && c != 0x7f:
			plain = append(plain, c)
		}
	}
	return plain
}
