package guest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/nodeagent/guest/qmp"
)

// maxConsoleLog is the size at which the console's log is rotated. One older
// log is kept.
const maxConsoleLog = 1 << 20

// maxLog bounds QEMU's own log.
const maxLog = 256 << 10

// console gives access to a Guest's serial console, the log of that console,
// and its display.
type console struct {
	*identity
	vm *instance
}

// rotate rotates long logs.
func (c *console) rotate() {
	path := c.consoleLog()
	if info, err := os.Stat(path); err == nil && info.Size() > maxConsoleLog {
		if err := setAside(path, path+".1", maxConsoleLog); err != nil {
			c.log.Warn("cannot rotate the console's log", "error", err)
		}
	}
	path = filepath.Join(c.dir, "qemu.log")
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Truncate(path, 0); err != nil {
			c.log.Warn("cannot truncate QEMU's log", "error", err)
		}
	}
}

// setAside moves the content of a file to another while QEMU appends to it, and
// keeps the last limit bytes of that. Nothing is lost on file systems that can
// remove blocks from a file, as ext4 and XFS can; on others, what QEMU writes
// between the last read and the truncation is lost.
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

// wholeBlocks returns how many bytes of a file are whole blocks of its file
// system, without the last one.
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

// lookUp finds the executable of a program.
func lookUp(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

func (c *console) open(ctx context.Context) (io.ReadWriteCloser, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(c.run, "console.sock"))
	if err != nil {
		return nil, fmt.Errorf("guest %s has no console now: it does not run", c.name)
	}
	return conn, nil
}

// openDisplay makes QEMU serve RFB on one end of a socket pair; it listens
// nowhere.
func (c *console) openDisplay(ctx context.Context) (io.ReadWriteCloser, error) {
	near, far, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("sockets for the display: %w", err)
	}
	defer func() { _ = far.Close() }() // QEMU has a duplicate
	err = c.vm.withMonitor(ctx, func(ctx context.Context, m *qmp.Client) error { return c.giveDisplay(ctx, m, far) })
	if err != nil {
		return nil, errors.Join(err, near.Close())
	}
	return near, nil
}

func (c *console) giveDisplay(ctx context.Context, m *qmp.Client, far *os.File) error {
	var displays []struct{}
	if err := m.Execute(ctx, "query-vnc-servers", nil, &displays); err != nil {
		return err
	}
	if len(displays) == 0 { // add_client would succeed, and nothing would come of it
		return fmt.Errorf("guest %s has no display: set machine: q35 and display: vga, then weftctl guest restart %[1]s", c.name)
	}
	name := "vnc-" + rand.Text()
	if err := m.GiveFile(ctx, name, far); err != nil {
		return err
	}
	// skipauth: bootd has authenticated the user.
	err := m.Execute(ctx, "add_client", map[string]any{"protocol": "vnc", "fdname": name, "skipauth": true}, nil)
	if err != nil {
		return errors.Join(err, m.Execute(ctx, "closefd", map[string]string{"fdname": name}, nil))
	}
	return nil
}

// socketPair returns both ends of a connection, one of them as a file to pass
// to QEMU.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "display"), os.NewFile(uintptr(fds[1]), "display")
	defer func() { _ = ours.Close() }() // near is a duplicate
	near, err := net.FileConn(ours)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return near, theirs, nil
}
