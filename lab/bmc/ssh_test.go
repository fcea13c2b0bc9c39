package bmc_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/rackweft/rackweft/lab/bmc"
)

// serveConsole runs the SSH service of the BMC's first system, and returns its address.
func serveConsole(t *testing.T, server *bmc.Server) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeConsole("", listener) }()
	t.Cleanup(func() { // before that of serve, so it closes the BMC itself
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

func dialSSH(t *testing.T, server *bmc.Server, address, password string) (*ssh.Client, error) {
	t.Helper()
	key, err := server.HostKey()
	if err != nil {
		t.Fatal(err)
	}
	client, err := ssh.Dial("tcp", address, &ssh.ClientConfig{User: "admin", Auth: []ssh.AuthMethod{ssh.Password(password)},
		HostKeyCallback: ssh.FixedHostKey(key), Timeout: 10 * time.Second})
	if err == nil {
		t.Cleanup(func() { _ = client.Close() })
	}
	return client, err
}

// terminal is a person at an SSH client.
type terminal struct {
	t       *testing.T
	session *ssh.Session
	keys    io.Writer

	mu     sync.Mutex
	screen bytes.Buffer
}

func (p *terminal) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.screen.Write(b)
}

func (p *terminal) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.screen.String()
}

// sit opens a terminal; with a command it is run instead of a shell.
func sit(t *testing.T, client *ssh.Client, command string) *terminal {
	t.Helper()
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	p := &terminal{t: t, session: session}
	session.Stdout = p
	if p.keys, err = session.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := session.RequestPty("xterm", 25, 80, ssh.TerminalModes{}); err != nil {
		t.Fatal(err)
	}
	if command == "" {
		err = session.Shell()
	} else {
		err = session.Start(command)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *terminal) types(keys string) {
	p.t.Helper()
	if _, err := io.WriteString(p.keys, keys); err != nil {
		p.t.Fatalf("type %q: %v; the screen: %q", keys, err, p.text())
	}
}

// sees waits until the screen, from the last place on, shows the text.
func (p *terminal) sees(text string) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%q on the screen", text), func() bool { return strings.Contains(p.text(), text) })
	p.mu.Lock()
	defer p.mu.Unlock()
	rest := p.screen.String()
	_, rest, _ = strings.Cut(rest, text)
	p.screen.Reset()
	p.screen.WriteString(rest)
}

func TestConsoleOverSSH(t *testing.T) {
	tests := []struct {
		style                       bmc.SSHStyle
		prompt, entry, said, hangUp string
		port                        float64
	}{
		{bmc.OpenBMC, "", "", "", "", 2200},
		{bmc.ILO, "hpiLO-> ", "vsp", "Virtual Serial Port Active", "\x1b(", 22},
		{bmc.IDRAC, "racadm>>", "console com2", "Connected to Serial Device 2", "\x1c", 22},
		{bmc.XCC, "system> ", "console 1", "", "\x1b(", 22},
		{bmc.Supermicro, "-> ", "cd system1/sol1; start", "to terminate session", "\x1bT", 22},
	}
	for _, tt := range tests {
		t.Run(string(tt.style), func(t *testing.T) {
			server, machine, address := serve(t, func(c *bmc.Config) {
				c.Systems[0].Console = bmc.Console{Access: bmc.BySSH, Style: tt.style}
			})
			machine.power = bmc.On
			c := newClient(t, address)
			described, _ := c.want(200, "GET", system, "")["SerialConsole"].(map[string]any)
			told, _ := described["SSH"].(map[string]any)
			entry, _ := told["ConsoleEntryCommand"].(string)
			if described["WebSocket"] != nil || told["ServiceEnabled"] != true || told["Port"] != tt.port || entry != tt.entry {
				t.Errorf("SerialConsole %v", described)
			}
			c.want(404, "GET", "/console0", "")

			client, err := dialSSH(t, server, serveConsole(t, server), password)
			if err != nil {
				t.Fatal(err)
			}
			p := sit(t, client, "")
			if tt.prompt != "" {
				p.sees(tt.prompt)
				p.types("reboot the moon\r")
				p.sees("reboot the moon\r\n") // its echo
				p.sees(tt.prompt)
				p.types(tt.entry + "x\x7f\r")
				p.sees(tt.said)
			}
			p.types("echo")
			p.sees("echo")
			second := sit(t, client, tt.entry)
			if err := second.session.Wait(); err != nil { // it says that the console is in use
				t.Fatal(err)
			}
			if strings.Contains(second.text(), "echo") {
				t.Errorf("a second console was let in: %q", second.text())
			}
			if tt.hangUp == "" {
				return
			}
			p.types("more" + tt.hangUp)
			p.sees("more")
			p.sees(tt.prompt)
			// A command instead of a shell, in which the keys of the hang-up have no meaning.
			direct := sit(t, client, tt.entry)
			direct.types("\x1bx")
			direct.sees("\x1bx")
			direct.types("\x1b") // a key of its own after a pause
			if tt.hangUp[0] == 0x1b {
				direct.sees("\x1b")
			}
			direct.types(tt.hangUp)
			if err := direct.session.Wait(); err != nil {
				t.Error(err)
			}
			p.types("exit\r")
			if err := p.session.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSMASHGoesStepByStep(t *testing.T) {
	server, machine, _ := serve(t, func(c *bmc.Config) {
		c.Systems[0].Console = bmc.Console{Access: bmc.ByWebSocketAndSSH, Style: bmc.Supermicro}
	})
	machine.power = bmc.On
	client, err := dialSSH(t, server, serveConsole(t, server), password)
	if err != nil {
		t.Fatal(err)
	}
	p := sit(t, client, "")
	p.types("start\r") // not there yet
	p.sees("NOT RECOGNIZED")
	p.types("cd system1\r\ncd sol1\rstart\r")
	p.sees("terminate session")
	p.types("here")
	p.sees("here")
}

func TestSSHLogin(t *testing.T) {
	server, _, _ := serve(t, func(c *bmc.Config) { c.Systems[0].Console.Access = bmc.BySSH })
	address := serveConsole(t, server)
	if _, err := dialSSH(t, server, address, "guess"); err == nil {
		t.Error("a wrong password was accepted")
	}
	old, err := server.HostKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.NewHostKey(); err != nil {
		t.Fatal(err)
	}
	if key, _ := server.HostKey(); bytes.Equal(key.Marshal(), old.Marshal()) {
		t.Error("the same host key after NewHostKey")
	}
	if _, err := dialSSH(t, server, address, password); err != nil {
		t.Error(err)
	}
	server.SetUnreachable(true)
	config := &ssh.ClientConfig{User: "admin", HostKeyCallback: ssh.InsecureIgnoreHostKey()}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
	if _, _, _, err := ssh.NewClientConn(conn, address, config); err == nil {
		t.Error("an unreachable BMC answers")
	}
	_ = conn.Close()
	server.SetUnreachable(false)
	if _, err := dialSSH(t, server, address, password); err != nil {
		t.Error(err)
	}
}

func TestHostKeyIsKept(t *testing.T) {
	dir := t.TempDir()
	first, _, _ := serve(t, func(c *bmc.Config) { c.Dir = dir })
	again, _, _ := serve(t, func(c *bmc.Config) { c.Dir = dir })
	one, err := first.HostKey()
	if err != nil {
		t.Fatal(err)
	}
	if two, err := again.HostKey(); err != nil || !bytes.Equal(one.Marshal(), two.Marshal()) {
		t.Errorf("another host key after a restart: %v", err)
	}
}

// The client that people have.
func TestOpenSSH(t *testing.T) {
	server, machine, _ := serve(t, func(c *bmc.Config) {
		c.Systems[0].Console = bmc.Console{Access: bmc.BySSH, Style: bmc.ILO}
	})
	machine.power = bmc.On
	host, port, err := net.SplitHostPort(serveConsole(t, server))
	if err != nil {
		t.Fatal(err)
	}
	ask := filepath.Join(t.TempDir(), "ask")
	if err := os.WriteFile(ask, []byte("#!/bin/sh\necho "+password+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "ssh", "-F", "none", "-tt", "-p", port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "admin@"+host)
	cmd.Env = append(os.Environ(), "SSH_ASKPASS="+ask, "SSH_ASKPASS_REQUIRE=force", "DISPLAY=none")
	p := &terminal{t: t}
	cmd.Stdout, cmd.Stderr = p, p
	if p.keys, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.sees("hpiLO-> ")
	p.types("vsp\r")
	p.sees("Virtual Serial Port Active")
	p.types("hello")
	p.sees("hello")
	p.types("\x1b(")
	p.sees("hpiLO-> ")
	p.types("exit\r")
	if err := cmd.Wait(); err != nil {
		t.Errorf("ssh: %v: %s", err, p.text())
	}
}

func TestConsolePlaces(t *testing.T) {
	tests := []struct {
		console         bmc.Console
		system, manager bool
		ssh             bool
	}{
		{bmc.Console{}, true, false, false},
		{bmc.Console{Access: bmc.BySSH, Place: bmc.InManager, Style: bmc.ILO}, false, true, true},
		{bmc.Console{Access: bmc.BySSH, Place: bmc.Nowhere}, false, false, true},
		{bmc.Console{Access: bmc.NoConsole}, false, false, false},
		{bmc.Console{Access: bmc.ByWebSocketAndSSH}, true, false, true},
	}
	for _, tt := range tests {
		server, _, address := serve(t, func(c *bmc.Config) { c.Systems[0].Console = tt.console })
		c := newClient(t, address)
		if got := c.want(200, "GET", system, "")["SerialConsole"] != nil; got != tt.system {
			t.Errorf("%+v: in the system %v", tt.console, got)
		}
		if got := c.want(200, "GET", "/redfish/v1/Managers/1", "")["SerialConsole"] != nil; got != tt.manager {
			t.Errorf("%+v: in the manager %v", tt.console, got)
		}
		protocols := c.want(200, "GET", "/redfish/v1/Managers/1/NetworkProtocol", "")
		if got := protocols["SSH"].(map[string]any)["ProtocolEnabled"]; got != tt.ssh || (server.ConsolePort("") != 0) != tt.ssh {
			t.Errorf("%+v: SSH %v, port %d", tt.console, got, server.ConsolePort(""))
		}
	}
}
