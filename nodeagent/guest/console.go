package guest

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// maxConsoleLog is how long the console's log grows before it is set aside; one
// older log is kept.
const maxConsoleLog = 1 << 20

// maxLog is how much QEMU itself may have to say.
const maxLog = 256 << 10

func (g *guest) consoleLog() string { return filepath.Join(g.dir, "console.log") }

// rotate sets a long log aside. QEMU has the file open and appends to it, so it
// is copied and emptied: what comes between the two is lost.
func (g *guest) rotate() {
	path := g.consoleLog()
	if info, err := os.Stat(path); err == nil && info.Size() > maxConsoleLog {
		if err := copyTail(path, path+".1", maxConsoleLog); err != nil {
			g.log.Warn("the console's log cannot be set aside; its past is lost", "error", err)
		}
		if err := os.Truncate(path, 0); err != nil {
			g.log.Warn("the console's log cannot be emptied", "error", err)
		}
	}
	path = filepath.Join(g.dir, "qemu.log")
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Truncate(path, 0); err != nil {
			g.log.Warn("QEMU's log cannot be emptied", "error", err)
		}
	}
}

// copyTail copies the last bytes of a file in place of another.
func copyTail(from, to string, limit int64) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	if _, err := in.Seek(-limit, io.SeekEnd); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyN(out, in, limit)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	return err
}

// lookUp finds a program's file.
func lookUp(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}
