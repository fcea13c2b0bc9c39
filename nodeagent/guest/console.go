package guest

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxConsoleLog is how long the console's log grows before it is set aside; one
// older log is kept.
const maxConsoleLog = 1 << 20

// maxLog is how much QEMU itself may have to say.
const maxLog = 256 << 10

func (g *guest) consoleLog() string { return filepath.Join(g.dir, "console.log") }

// rotate sets a long log aside.
func (g *guest) rotate() {
	path := g.consoleLog()
	if info, err := os.Stat(path); err == nil && info.Size() > maxConsoleLog {
		if err := setAside(path, path+".1", maxConsoleLog); err != nil {
			g.log.Warn("the console's log cannot be set aside", "error", err)
		}
	}
	path = filepath.Join(g.dir, "qemu.log")
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Truncate(path, 0); err != nil {
			g.log.Warn("QEMU's log cannot be emptied", "error", err)
		}
	}
}

// setAside moves what a file holds to another, of which it keeps the last bytes,
// while QEMU appends to it. Nothing is lost where the file system can take
// blocks out of a file, as ext4 and XFS can; elsewhere what is written between
// the last read and the truncation is.
func setAside(path, to string, limit int64) error {
	in, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	whole, err := wholeBlocks(in)
	if err != nil || whole == 0 {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = moveBlocks(in, out, whole, limit)
	return errors.Join(err, out.Close())
}

// wholeBlocks is how long a file is in blocks of its file system, without the last.
func wholeBlocks(f *os.File) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return 0, err
	}
	return (info.Size() - 1) / fs.Bsize * fs.Bsize, nil // the last byte must stay (fallocate(2))
}

func moveBlocks(in, out *os.File, whole, limit int64) error {
	if _, err := in.Seek(max(0, whole-limit), io.SeekStart); err != nil {
		return err
	}
	if _, err := io.CopyN(out, in, min(whole, limit)); err != nil {
		return err
	}
	err := unix.Fallocate(int(in.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, whole)
	if err == nil || !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return in.Truncate(0)
}

// lookUp finds a program's file.
func lookUp(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}
