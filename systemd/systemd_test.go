package systemd

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestUnit(t *testing.T) {
	for name, want := range map[string][]string{
		"bootd.service":             {"ExecStart=/usr/local/bin/bootd", "/etc/rackweft/bootd.yaml"},
		"nodeagent.service":         {"ExecStart=/opt/rackweft/bin/nodeagent", "/etc/rackweft/nodeagent.yaml", "CAP_SYS_ADMIN"},
		"nodeagent-speaker.service": {"ExecStart=/opt/rackweft/bin/nodeagent speaker", "ConditionPathExists=/var/lib/rackweft/nodeagent/speaker.json"},
	} {
		text, err := Unit(name)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, "Type=notify", "WatchdogSec=30s", "Restart=always", "ProtectSystem=strict", "NoNewPrivileges=yes",
			"MemoryDenyWriteExecute=yes", "WantedBy=multi-user.target",
			"\nRestartPreventExitStatus=78\n") // 2 is a panic's, and the watchdog's
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s lacks %q", name, w)
			}
		}
	}
	_, err := Unit("other.service")
	if err == nil || !strings.Contains(err.Error(), "bootd.service, nodeagent-speaker.service, nodeagent.service") {
		t.Errorf("an unknown unit gives %v; want an error that names those that exist", err)
	}
}

func TestProperties(t *testing.T) {
	for _, name := range Units() {
		all, err := Properties(name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := Unit(name)
		if err != nil {
			t.Fatal(err)
		}
		section, _, _ := strings.Cut(text[strings.Index(text, "[Service]"):], "[Install]")
		if got, want := len(all), len(regexp.MustCompile(`(?m)^\w+=`).FindAllString(section, -1)); got != want || got < 20 {
			t.Errorf("%s has %d properties, want %d", name, got, want)
		}
		some, err := Properties(name, "Type", "SystemCallFilter")
		if err != nil {
			t.Fatal(err)
		}
		left := slices.DeleteFunc(all, func(p string) bool { return strings.HasPrefix(p, "Type=") || strings.HasPrefix(p, "SystemCallFilter=") })
		if !slices.Equal(some, left) {
			t.Errorf("%s without two: %q", name, some)
		}
	}
	if _, err := Properties("other.service"); err == nil {
		t.Error("an unknown unit has properties")
	}
}

// systemd itself reads the units; the daemons need not be installed here.
func TestUnitsVerify(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed: the units are not verified by systemd")
	}
	binary := regexp.MustCompile(`(?m)^ExecStart=\S+`)
	for _, name := range Units() {
		text, err := Unit(name)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(binary.ReplaceAllString(text, "ExecStart=/bin/true")), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(analyze, "verify", "--man=no", path)
		var said strings.Builder // warnings, which leave its exit code at 0
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Run(); err != nil || strings.Contains(said.String(), name) {
			t.Errorf("systemd-analyze verify %s: %v\n%s", name, err, said.String())
		}
	}
}

func TestNotifier(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	receive := func() string {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))

	n := NewNotifier(slog.New(slog.DiscardHandler))
	n.Ready()
	n.Status("joined;\nREADY=0 is not smuggled in")
	n.Status("joined; READY=0 is not smuggled in")
	n.Status("connected")
	for _, want := range []string{"READY=1", "STATUS=joined; READY=0 is not smuggled in", "STATUS=connected"} {
		if got := receive(); got != want {
			t.Errorf("systemd was told %q, want %q", got, want)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	n.Watchdog(ctx, func() bool {
		asked++
		if asked == 4 {
			cancel()
		}
		return asked == 2
	})
	n.Stopping()
	for _, want := range []string{"WATCHDOG=1", "STOPPING=1"} {
		if got := receive(); got != want {
			t.Errorf("systemd was told %q, want %q", got, want)
		}
	}
}

func TestNotifierOutsideSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	n := NewNotifier(slog.New(slog.DiscardHandler))
	n.Ready()
	n.Status("nobody listens")
	n.Watchdog(t.Context(), func() bool { t.Error("no watchdog, and yet it asks"); return true })
	n.Stopping()
}

// A pid 1 that hangs does not hang the daemon.
func TestNotifierWithADeafSystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	t.Setenv("NOTIFY_SOCKET", path)
	var log strings.Builder
	n := NewNotifier(slog.New(slog.NewTextHandler(&log, nil)))
	for i := 0; i < 1000 && log.Len() == 0; i++ {
		n.Status(strconv.Itoa(i))
	}
	if !strings.Contains(log.String(), "cannot notify") {
		t.Errorf("a full queue is not noticed: %q", log.String())
	}
}
