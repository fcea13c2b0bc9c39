package console

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/fleet"
	"github.com/rackweft/rackweft/hardware/sshconsole"
)

const (
	manyConsoles = 500
	openKiB      = 160 << 10 // that they may take
	mostKiB      = 320 << 10 // the same while all of them send a burst at once, on a busy machine
	burst        = 512 << 10 // bytes of each
	prompt       = "login:"
)

func TestMain(m *testing.M) {
	if os.Getenv("CONSOLE_HELPER") == "" {
		os.Exit(m.Run())
	}
	if err := serveConsoles(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serveConsoles is an SSH server of which each login is the console of another server: it boots, and when a key is typed it
// sends a burst. It ends with its standard input.
func serveConsoles() error {
	signer, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		return err
	}
	config := &ssh.ServerConfig{PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, nil }}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	go func() { // ends with the process
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = serveConsole(conn, config) }()
		}
	}()
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func serveConsole(raw net.Conn, config *ssh.ServerConfig) error {
	_, channels, requests, err := ssh.NewServerConn(raw, config)
	if err != nil {
		return err
	}
	go ssh.DiscardRequests(requests)
	channel, asked, err := (<-channels).Accept()
	if err != nil {
		return err
	}
	for request := range asked {
		if err := request.Reply(true, nil); err != nil {
			return err
		}
		if request.Type == "shell" {
			break
		}
	}
	go ssh.DiscardRequests(asked)
	line := []byte("[   12.345678] systemd[1]: Started a service whose name is as long as they are.\r\n")
	if _, err := channel.Write(append(bytes.Repeat(line, 2*portLines), prompt...)); err != nil {
		return err
	}
	if _, err := channel.Read(make([]byte, 1)); err != nil {
		return err
	}
	_, err = channel.Write(bytes.Repeat(line, burst/len(line)))
	return err
}

// TestResidentSet has the consoles of 500 Machines open over SSH, with a person attached to each who takes nothing of what it
// sends.
func TestResidentSet(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("opens 500 consoles; the race detector needs memory of its own")
	}
	port := startConsoles(t)
	r := newRig(t)
	r.dial = func(ctx context.Context, m *api.Machine, _ fleet.Price) (*hardware.Console, error) {
		e := hardware.Endpoint{Address: "https://127.0.0.1", Username: "u", Password: "p"}
		return sshconsole.Open(ctx, e, sshconsole.Way{Port: port})
	}
	defer debug.SetGCPercent(debug.SetGCPercent(50)) // as bootd has it
	before := resident(t)
	name := func(i int) string { return fmt.Sprintf("m%03d", i) }
	machines := make([]*api.Machine, manyConsoles)
	for i := range machines {
		r.create(name(i), true)
	}
	r.Sync()
	for i := range machines {
		machines[i], _ = store.Cached[api.Machine](r.Cache, name(i))
	}
	for _, m := range machines {
		r.within(time.Minute, "it has booted", func() bool { return r.keeper.LastLine(m) == prompt })
	}
	open := resident(t)
	persons := make([]io.ReadWriteCloser, manyConsoles)
	for i, m := range machines {
		one, err := r.keeper.Attach(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		persons[i] = one
	}
	attached := resident(t)
	for _, one := range persons {
		if _, err := one.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	most, slow := attached, 0
	for deadline := time.Now().Add(time.Minute); slow < manyConsoles && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		most, slow = max(most, status(t)), 0
		for _, one := range persons {
			select {
			case <-one.(*person).over:
				slow++
			default:
			}
		}
	}
	t.Logf("resident set of %d consoles: %d KiB open, %d KiB with persons, %d KiB at most in a burst of %d KiB each; %d persons were dropped",
		manyConsoles, open-before, attached-before, most-before, burst>>10, slow)
	if open-before > openKiB || most-before > mostKiB || slow < manyConsoles {
		t.Errorf("want %d KiB open and %d KiB at most, and no person who takes nothing kept", openKiB, mostKiB)
	}
}

func startConsoles(t *testing.T) (port int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CONSOLE_HELPER=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("the consoles' server has not started")
	}
	if _, err := fmt.Sscan(lines.Text(), &port); err != nil {
		t.Fatal(err)
	}
	return port
}

// resident is this process's resident set without garbage, in KiB.
func resident(t *testing.T) int {
	t.Helper()
	debug.FreeOSMemory()
	return status(t)
}

func status(t *testing.T) (kib int) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "VmRSS:")
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}
