package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// standInBootd is what the tests run as bootd: it says where it is, and that it is ready, and waits to be
// stopped. With --broken it ends at once, with --mute it never gets ready.
func standInBootd() int {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	interfaces, err := filepath.Glob("/sys/class/net/*")
	if err != nil {
		return 1
	}
	fmt.Println("bootd", strings.Join(os.Args[1:], " "), "sees", interfaces)
	switch {
	case slices.Contains(os.Args, "--broken"):
		fmt.Println("port 67 is busy")
		return 1
	case !slices.Contains(os.Args, "--mute"):
		if err := sayReady(); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	<-stop
	fmt.Println("bootd stops")
	return 0
}

// sayReady is sd_notify(3), with the fewest bytes around what counts.
func sayReady() error {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte("STATUS=serving\nREADY=1"))
	return errors.Join(err, conn.Close())
}

// standInDir is a folder with a bootd that is this test binary.
func standInDir(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "bootd")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	waittest.Until(t, 10*time.Second, what, is)
}

func TestBootdLifecycle(t *testing.T) {
	for _, supervised := range []bool{false, true} {
		t.Run(fmt.Sprintf("supervised=%v", supervised), func(t *testing.T) {
			r := newRack(t, func(c *Config) {
				only(BIOS)(c)
				c.Binaries, c.BootdConfig, c.SuperviseBootd = standInDir(t), []byte("listen: {}\n"), supervised
			})
			says := func(what string, times int) func() bool {
				return func() bool {
					log, err := os.ReadFile(r.BootdLog())
					return err == nil && strings.Count(string(log), what) == times
				}
			}
			if err := r.KillBootd(); err == nil {
				t.Error("killed a bootd that does not run")
			}
			if err := r.StartBootd(t.Context(), "--extra"); err != nil {
				t.Fatal(err)
			}
			if err := r.StartBootd(t.Context()); err == nil {
				t.Error("started twice")
			}
			dir := filepath.Join(r.Dir(), "bootd")
			eventually(t, "bootd with its flags, in its namespace", says(fmt.Sprintf(
				"bootd --state-dir %s/state --run-dir %s/run --config %s/bootd.yaml --extra sees [/sys/class/net/lo /sys/class/net/mgmt /sys/class/net/prod /sys/class/net/pxe]", dir, dir, dir), 1))
			if config, err := os.ReadFile(filepath.Join(dir, "bootd.yaml")); err != nil || string(config) != "listen: {}\n" {
				t.Errorf("configuration %q, %v", config, err)
			}
			first := r.BootdPID()
			if err := r.KillBootd(); err != nil {
				t.Fatal(err)
			}
			if supervised {
				eventually(t, "another bootd", func() bool { pid := r.BootdPID(); return pid != 0 && pid != first })
			} else {
				if pid := r.BootdPID(); pid != 0 {
					t.Errorf("bootd %d runs after it was killed", pid)
				}
				if err := r.StartBootd(t.Context(), "--extra"); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "it is ready", says("--extra sees", 2))
			if err := r.RestartBootd(t.Context()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is ready", says("--extra sees", 3))
			if err := r.StopBootd(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !says("bootd stops", 2)() {
				t.Error("it was not asked to stop, but killed")
			}
			time.Sleep(3 * restartDelay)
			if pid := r.BootdPID(); pid != 0 {
				t.Errorf("bootd %d runs after it was stopped", pid)
			}
		})
	}
}

func TestMissingBootd(t *testing.T) {
	r := newRack(t, func(c *Config) { only(BIOS)(c); c.Binaries = t.TempDir() })
	err := r.StartBootd(t.Context())
	if err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("a folder without bootd: %v", err)
	}
}

func TestWaitPhase(t *testing.T) {
	r := newRack(t, only(BIOS))
	m := r.Machine("m1")
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitConsole(t, m, 0, "SeaBIOS")
	read := func(phases ...string) PhaseReader {
		return func(context.Context, string) (string, error) {
			phase := phases[0]
			if len(phases) > 1 {
				phases = phases[1:]
			}
			if phase == "" {
				return "", errors.New("bootd restarts")
			}
			return phase, nil
		}
	}
	if err := r.WaitPhase(t.Context(), read("Registered", "", "Active"), "m1", "Active"); err != nil {
		t.Error(err)
	}
	if err := r.WaitPhase(t.Context(), read("Active"), "m9", "Active"); err == nil {
		t.Error("waited for a machine that the rack does not have")
	}
	err := r.WaitPhase(t.Context(), read("Provisioning", "Failed"), "m1", "Active")
	if err == nil || !strings.Contains(err.Error(), "m1 is Failed") || !strings.Contains(err.Error(), "SeaBIOS") {
		t.Errorf("a machine that failed: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
	defer cancel()
	err = r.WaitPhase(ctx, read("Provisioning", ""), "m1", "Active")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `"Provisioning"`) || !strings.Contains(err.Error(), "bootd restarts") {
		t.Errorf("a machine that does not get there: %v", err)
	}
}

func TestTail(t *testing.T) {
	screen := "\x1b[2J\x1b[1;1Hone\r\n\r\n  two \x1b[0m \r\nthree\x00\n"
	if got := strings.Split(tail([]byte(screen), 2), "\n"); !slices.Equal(got, []string{"  two", "three"}) {
		t.Errorf("tail %q", got)
	}
	if got := tail([]byte("\x1b[12"), 2); got != "" {
		t.Errorf("tail of an unfinished sequence: %q", got)
	}
}

func FuzzTail(f *testing.F) {
	f.Add([]byte("\x1b[2Jtext\r\n"), 3)
	f.Add([]byte("\x1b"), 1)
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		if n < 0 || n > 100 {
			return
		}
		got := tail(body, n)
		if strings.ContainsAny(got, "\x1b\x00\r") || strings.Count(got, "\n") >= max(n, 1) {
			t.Errorf("tail %q of %q", got, body)
		}
	})
}

func TestBootdThatDoesNotGetReady(t *testing.T) {
	r := newRack(t, func(c *Config) { only(BIOS)(c); c.Binaries, c.SuperviseBootd = standInDir(t), true })
	err := r.StartBootd(t.Context(), "--broken")
	if err == nil || !strings.Contains(err.Error(), "exit status 1") || !strings.Contains(err.Error(), "port 67 is busy") {
		t.Errorf("a bootd that ends at once: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err = r.StartBootd(ctx, "--mute")
	if !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "port 67 is busy") {
		t.Errorf("a bootd that never gets ready: %v", err)
	}
	if pid := r.BootdPID(); pid != 0 {
		t.Errorf("bootd %d runs after its start failed", pid)
	}
	if err := r.StartBootd(t.Context()); err != nil {
		t.Errorf("after two failures: %v", err)
	}
}
