package ipmi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/rackweft/rackweft/hardware"
)

// escape is the byte that commands ipmitool at the beginning of a line. No terminal sends it: it is in no UTF-8.
const escape = "\xff"

// banner is the line that ipmitool prints once the console is open.
const banner = "[SOL Session operational."

// closeLimit is how long ipmitool may take to give the console back to others.
const closeLimit = 5 * time.Second

// console is a running ipmitool. It has a terminal, because it refuses to read keys from anything else, and holds back
// what it writes to anything else.
type console struct {
	cmd       *exec.Cmd
	terminal  *os.File // our end of it
	reader    *bufio.Reader
	said      *words
	closeOnce sync.Once
	closeErr  error
}

// console opens serial over LAN (§15).
func (s *Service) console(ctx context.Context) (*console, error) {
	c, err := s.startConsole()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, runLimit, errNoAnswer)
	defer cancel()
	stop := context.AfterFunc(ctx, c.kill)
	err = c.awaitBanner()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = c.Close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, s.consoleFailure(c.said.String(), err)
	}
	return c, nil
}

// startConsole starts ipmitool. It is not bounded by any context: Close ends it.
func (s *Service) startConsole() (*console, error) {
	ours, theirs, err := openTerminal()
	if err != nil {
		return nil, fmt.Errorf("open a terminal for ipmitool: %w", err)
	}
	defer func() { _ = theirs.Close() }()
	c := &console{terminal: ours, reader: bufio.NewReader(ours), said: new(words)}
	c.cmd = s.tool.command(context.Background(), "-v", "-e", escape, "sol", "activate")
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = theirs, theirs, c.said
	if err := c.cmd.Start(); err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	return c, nil
}

// awaitBanner drops what ipmitool prints before the server's output.
func (c *console) awaitBanner() error {
	for range 100 {
		line, err := c.reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		if strings.HasPrefix(string(line), banner) {
			return nil
		}
	}
	return errors.New("ipmitool opens no console, and does not end")
}

func (s *Service) consoleFailure(said string, err error) error {
	switch {
	case strings.Contains(said, "already active on another session"), strings.Contains(said, "activation limit reached"):
		return hardware.ErrInUse
	case strings.Contains(said, "payload disabled"), strings.Contains(said, "payload type disabled"):
		return unsupported("serial over LAN is disabled in the BMC: enable it, and for this user")
	case said != "":
		return s.tool.failure(said)
	}
	return err
}

// Read gives what the server writes. It ends with io.EOF.
func (c *console) Read(p []byte) (int, error) {
	n, err := c.reader.Read(p)
	if errors.Is(err, syscall.EIO) { // Linux: there is nothing at the terminal's other end
		err = io.EOF
	}
	return n, err
}

// Write fails once the console has ended.
func (c *console) Write(p []byte) (int, error) { return c.terminal.Write(p) }

// Close takes ipmitool's terminal away, upon which it deactivates the console, and waits for its end.
func (c *console) Close() error {
	c.closeOnce.Do(func() {
		defer time.AfterFunc(closeLimit, c.kill).Stop()
		c.closeErr = c.terminal.Close()
		_ = c.cmd.Wait() // how it ends is of no interest any more
	})
	return c.closeErr
}

func (c *console) kill() { _ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) }

// freeConsole deactivates the console, whoever has it. That no one has is no error.
func (s *Service) freeConsole(ctx context.Context) error {
	if err := hardware.Permitted(ctx, "IPMI", "Deactivate Payload"); err != nil {
		return err
	}
	_, err := s.tool.run(ctx, "sol", "deactivate")
	if err != nil && strings.Contains(err.Error(), "already de-activated") {
		return nil
	}
	return err
}

// openTerminal gives both ends of a pseudo-terminal that changes no byte and does not echo.
func openTerminal() (ours, theirs *os.File, err error) {
	ours, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	number, err := control(ours, func(fd int) (int, error) {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return 0, err
		}
		return unix.IoctlGetInt(fd, unix.TIOCGPTN)
	})
	if err == nil {
		theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, ours.Close())
	}
	_, err = control(theirs, func(fd int) (int, error) {
		_, err := term.MakeRaw(fd)
		return 0, err
	})
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close(), ours.Close())
	}
	return ours, theirs, nil
}

// control calls with the descriptor and leaves the file in the hands of the runtime's poller.
func control(f *os.File, call func(fd int) (int, error)) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	if ctlErr := raw.Control(func(fd uintptr) { n, err = call(int(fd)) }); ctlErr != nil {
		return 0, ctlErr
	}
	return n, err
}

// words keeps the beginning of what a program complains of.
type words struct {
	mu   sync.Mutex
	text []byte
}

const maxWords = 4096

func (w *words) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, p[:min(len(p), maxWords-len(w.text))]...)
	return len(p), nil
}

func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.text)
}
