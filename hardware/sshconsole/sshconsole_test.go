package sshconsole

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/lab/bmc"
	"github.com/rackweft/rackweft/lab/bmc/bmctest"
)

// serve starts a BMC whose serial port echoes.
func serve(t *testing.T, style bmc.SSHStyle) (*bmctest.Server, hardware.Endpoint, int) {
	t.Helper()
	s := bmctest.Start(t, func(c *bmc.Config) { c.Systems[0].Console = bmc.Console{Access: bmc.BySSH, Style: style} })
	if err := s.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.BMC.ServeConsole("", l) }()
	t.Cleanup(func() {
		if err := errors.Join(s.BMC.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	key, err := s.BMC.HostKey()
	if err != nil {
		t.Fatal(err)
	}
	e := hardware.Endpoint{Address: s.URL, Username: bmctest.Username, Password: bmctest.Password, HostKey: ssh.FingerprintSHA256(key), PinnedOnly: true}
	return s, e, l.Addr().(*net.TCPAddr).Port
}

// hear reads until the text came.
func hear(t *testing.T, r io.Reader, want string) string {
	t.Helper()
	var heard []byte
	buffer := make([]byte, 7) // less than a prompt
	for !bytes.Contains(heard, []byte(want)) {
		n, err := r.Read(buffer)
		heard = append(heard, buffer[:n]...)
		if err != nil {
			t.Fatalf("after %q, waiting for %q: %v", heard, want, err)
		}
	}
	return string(heard)
}

func TestVendors(t *testing.T) {
	for style, way := range map[bmc.SSHStyle]Way{
		bmc.OpenBMC:    {},
		bmc.ILO:        {Commands: []string{"vsp"}, Leave: []string{"\x1b("}, Free: []string{"stop /system1/oemhp_vsp1"}},
		bmc.IDRAC:      {Commands: []string{"console com2"}, Leave: []string{"\x1c"}},
		bmc.XCC:        {Commands: []string{"console 1"}, Instead: "console start", Leave: []string{"\x1b("}, Free: []string{"console kill 1", "console kill"}},
		bmc.XCCLater:   {Commands: []string{"console 1"}, Instead: "console start", Leave: []string{"\x1b("}, Free: []string{"console kill 1", "console kill"}},
		bmc.Supermicro: {Commands: []string{"cd system1/sol1", "start"}, Leave: []string{"\x1bT"}},
	} {
		t.Run("style "+string(style), func(t *testing.T) {
			t.Parallel()
			_, e, port := serve(t, style)
			way.Port = port
			console, err := Open(t.Context(), e, way)
			if err != nil {
				t.Fatal(err)
			}
			if console.Kind != hardware.ConsoleSSH || console.HostKey != e.HostKey {
				t.Errorf("kind %s, host key %s, want %s", console.Kind, console.HostKey, e.HostKey)
			}
			keys := "one"
			for _, sequence := range way.Leave {
				keys += sequence
			}
			for _, k := range keys + "two" { // one by one
				if _, err := console.Write([]byte(string(k))); err != nil {
					t.Fatal(err)
				}
			}
			heard := hear(t, console, "two") // it was not left
			for _, sequence := range way.Leave {
				if strings.Contains(heard, sequence) {
					t.Errorf("%q was passed on", sequence)
				}
			}
			if len(way.Commands) > 0 {
				if _, err := Open(t.Context(), e, way); !errors.Is(err, hardware.ErrInUse) || !strings.Contains(err.Error(), "in use by another session") {
					t.Errorf("a second console: %v", err)
				}
			}
			if len(way.Free) > 0 {
				console = freed(t, e, way, console)
			}
			if err := errors.Join(console.Close(), console.Close()); err != nil {
				t.Error(err)
			}
			again := reopen(t, e, way)
			if err := again.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// freed opens the console that another client has, as one does whose login was never ended: that one's is over then.
func freed(t *testing.T, e hardware.Endpoint, way Way, other *hardware.Console) *hardware.Console {
	t.Helper()
	if err := Free(t.Context(), e, way); err != nil {
		t.Fatal(err)
	}
	console, err := Open(t.Context(), e, way)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(other); err != nil && !strings.Contains(err.Error(), "its command line is back") {
		t.Errorf("the other client's console ended with %v", err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if _, err := io.WriteString(console, "mine"); err != nil {
		t.Fatal(err)
	}
	hear(t, console, "mine")
	return console
}

// reopen opens the console that was closed: the BMC frees it when it has seen that.
func reopen(t *testing.T, e hardware.Endpoint, way Way) *hardware.Console {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		console, err := Open(t.Context(), e, way)
		if err == nil {
			return console
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestRefusals(t *testing.T) {
	s, e, port := serve(t, bmc.ILO)
	way := Way{Port: port, Commands: []string{"vsp"}, Leave: []string{"\x1b("}}
	wrong := e
	wrong.Password = "wrong"
	if _, err := Open(t.Context(), wrong, way); !errors.Is(err, hardware.ErrUnauthorized) {
		t.Errorf("a wrong password: %v", err)
	}
	if _, err := Open(t.Context(), e, Way{Port: port, Commands: []string{"open sesame"}}); err == nil || !strings.Contains(err.Error(), "COMMAND NOT RECOGNIZED") {
		t.Errorf("an unknown command: %v", err)
	}
	if err := s.BMC.NewHostKey(); err != nil {
		t.Fatal(err)
	}
	var mismatch *hardware.HostKeyMismatchError
	if _, err := Open(t.Context(), e, way); !errors.As(err, &mismatch) || mismatch.Want != e.HostKey || errors.Is(err, hardware.ErrUnauthorized) {
		t.Errorf("a changed host key: %v", err)
	}
}

// TestSilence: neither a server that does not speak SSH nor one without a prompt is waited for longer than ctx.
func TestSilence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	silent := l.Addr().(*net.TCPAddr).Port
	_, e, shell := serve(t, bmc.OpenBMC)
	for _, port := range []int{silent, shell} {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		if _, err := Open(ctx, e, Way{Port: port, Commands: []string{"vsp"}}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), strconv.Itoa(port)) {
			t.Errorf("port %d: %v", port, err)
		}
		cancel()
	}
}

// cut is a connection over which nothing comes any more once its cable is pulled.
type cut struct {
	net.Conn
	pulled chan struct{}
}

func (c *cut) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	select {
	case <-c.pulled:
		return 0, &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ETIMEDOUT)} // as TCP's keepalive ends it
	default:
		return n, err
	}
}

// TestLostConnection is told apart from a console that the BMC has ended.
func TestLostConnection(t *testing.T) {
	near, far := net.Pipe()
	c := &cut{Conn: near, pulled: make(chan struct{})}
	f := &flow{Conn: c, taken: make(chan struct{}, 1)}
	go func() {
		_, _ = far.Write([]byte("x"))
		close(c.pulled)
		_ = far.Close()
	}()
	for range 2 {
		_, _ = f.Read(make([]byte, 1))
	}
	s := fed("", []byte("last"))
	s.flow = f
	if heard, err := io.ReadAll(s); string(heard) != "last" || !errors.Is(err, hardware.ErrLost) {
		t.Errorf("read %q, %v", heard, err)
	}
	for err, want := range map[error]bool{io.EOF: false, net.ErrClosed: false, syscall.ECONNRESET: false, syscall.EHOSTUNREACH: true, syscall.ETIMEDOUT: true} {
		if unanswered(&net.OpError{Op: "read", Err: err}) != want {
			t.Errorf("%v is unanswered: %t", err, !want)
		}
	}
}

// fed is a console on which these chunks come.
func fed(prompt string, chunks ...[]byte) *stream {
	s := &stream{flow: new(flow), output: make(chan []byte, len(chunks)), prompt: []byte(prompt)}
	for _, chunk := range chunks {
		s.output <- chunk
	}
	close(s.output)
	return s
}

func TestCommandLineEndsTheConsole(t *testing.T) {
	heard, err := io.ReadAll(fed("</>hpiLO-> ", []byte("login: not a </>hpiLO-> prompt\r\n</>hpi"), []byte("LO-> "), []byte("secret")))
	if err == nil || !strings.HasSuffix(string(heard), "\n</>hpiLO-> ") {
		t.Errorf("heard %q, %v", heard, err)
	}
}

// FuzzOutput: whatever a BMC sends is passed on as it is, up to its prompt.
func FuzzOutput(f *testing.F) {
	f.Add([]byte("boot\r\nx->"), []byte(" more"))
	f.Add([]byte("\r"), []byte("\nx-> "))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		const prompt = "x-> "
		all := slices.Concat(one, two)
		heard, err := io.ReadAll(fed(prompt, one, two))
		if !bytes.HasPrefix(all, heard) || err == nil && !bytes.Equal(all, heard) {
			t.Errorf("%q + %q is heard as %q, %v", one, two, heard, err)
		}
		if back := promptIsBack(all, []byte(prompt)); back != (err != nil) {
			t.Errorf("%q + %q: the prompt is back %v, and it ends with %v", one, two, back, err)
		}
		_ = quote(all)
		_ = isPrompt(lastLine(all))
	})
}

// FuzzKeys: no keys lead out of the console, however they are divided.
func FuzzKeys(f *testing.F) {
	f.Add([]byte("ls\x1b"), []byte("(\x1c"))
	f.Add([]byte("\x1b\x1b"), []byte("((TT"))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		leave := []string{"\x1b(", "\x1bT", "\x1c", "abc"}
		k := filter{leave: leave}
		passed := slices.Concat(k.pass(one), k.pass(two))
		for _, sequence := range leave {
			if bytes.Contains(passed, []byte(sequence)) {
				t.Errorf("%q + %q passes %q", one, two, passed)
			}
		}
		all := slices.Concat(one, two)
		if !bytes.ContainsAny(all, "\x1b\x1cc") && !bytes.Equal(all, passed) {
			t.Errorf("%q became %q", all, passed)
		}
	})
}
