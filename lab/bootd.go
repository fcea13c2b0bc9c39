package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// bootd is the rack's boot daemon.
type bootd struct {
	mu       sync.Mutex    // guards the fields below
	process  *child        // nil when it does not run
	ended    chan struct{} // closed once the end of process is recorded
	ready    chan struct{} // closed once process has sent READY=1
	wanted   bool          // it is restarted when it ends, if supervised
	flags    []string
	restarts int
	watcher  sync.WaitGroup
}

// restartDelay is systemd's RestartSec default.
const restartDelay = 100 * time.Millisecond

// BootdDir holds bootd's state, run directory, configuration and log.
func (r *Rack) BootdDir() string { return filepath.Join(r.config.Dir, "bootd") }

// BootdLog is the file with bootd's output.
func (r *Rack) BootdLog() string { return filepath.Join(r.BootdDir(), "bootd.log") }

// BootdRunDir is bootd's --run-dir, with its API socket.
func (r *Rack) BootdRunDir() string { return filepath.Join(r.BootdDir(), "run") }

// BootdPID is bootd's process id, or 0 when it does not run.
func (r *Rack) BootdPID() int {
	r.bootd.mu.Lock()
	defer r.bootd.mu.Unlock()
	if r.bootd.process == nil {
		return 0
	}
	return r.bootd.process.pid
}

func (r *Rack) bootdRestarts() int {
	r.bootd.mu.Lock()
	defer r.bootd.mu.Unlock()
	return r.bootd.restarts
}

// StartBootd starts bootd in its namespace, with extra flags after the rack's
// own, and returns when bootd is ready (READY=1 of sd_notify(3)). If bootd ends
// before that, or is not ready when ctx ends, it fails with the end of bootd's
// log, and no bootd runs.
func (r *Rack) StartBootd(ctx context.Context, flags ...string) error {
	logged := fileSize(r.BootdLog())
	process, ready, err := r.spawnBootd(flags)
	if err != nil {
		return fmt.Errorf("start bootd: %w", err)
	}
	select {
	case <-ready:
		return nil
	case <-process.exited:
		err = fmt.Errorf("it ended before it was ready (%s)", process.state)
	case <-ctx.Done():
		err = fmt.Errorf("it is not ready: %w", ctx.Err())
	}
	stopped := r.StopBootd(context.WithoutCancel(ctx))
	return errors.Join(fmt.Errorf("start bootd: %w\n%s", err, tailReport(r.BootdLog(), logged)), stopped)
}

func (r *Rack) spawnBootd(flags []string) (*child, chan struct{}, error) {
	r.bootd.mu.Lock()
	defer r.bootd.mu.Unlock()
	if r.bootd.process != nil {
		return nil, nil, errors.New("it runs already")
	}
	if _, err := os.Stat(filepath.Join(r.config.Binaries, "bootd")); err != nil {
		return nil, nil, fmt.Errorf("%w; `make build` makes it", err)
	}
	for _, dir := range []string{"state", "run"} {
		if err := os.MkdirAll(filepath.Join(r.BootdDir(), dir), 0o700); err != nil {
			return nil, nil, err
		}
	}
	if len(r.config.BootdConfig) > 0 {
		if err := os.WriteFile(filepath.Join(r.BootdDir(), "bootd.yaml"), r.config.BootdConfig, 0o600); err != nil {
			return nil, nil, err
		}
	}
	r.bootd.flags, r.bootd.wanted = flags, true
	err := r.launchBootd()
	return r.bootd.process, r.bootd.ready, err
}

// launchBootd starts the process. The caller holds bootd.mu.
func (r *Rack) launchBootd() error {
	argv := []string{filepath.Join(r.config.Binaries, "bootd"),
		"--state-dir", filepath.Join(r.BootdDir(), "state"), "--run-dir", r.BootdRunDir()}
	if len(r.config.BootdConfig) > 0 {
		argv = append(argv, "--config", filepath.Join(r.BootdDir(), "bootd.yaml"))
	}
	argv = inside(r.bootdNamespace(), append(argv, r.bootd.flags...)...)
	log, err := os.OpenFile(r.BootdLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the child has a duplicate
	notices, err := r.listenForNotices()
	if err != nil {
		return err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+r.notifySocket())
	process, err := r.spawner.start("bootd", cmd)
	if err != nil {
		return errors.Join(err, notices.Close())
	}
	ended, ready := make(chan struct{}), make(chan struct{})
	r.bootd.process, r.bootd.ended, r.bootd.ready = process, ended, ready
	r.bootd.watcher.Go(func() { readNotices(notices, ready) })
	r.bootd.watcher.Go(func() {
		<-process.exited
		_ = notices.Close() // ends its reader; the next bootd has a socket of its own
		r.watchBootd(process, ended)
	})
	return nil
}

func (r *Rack) notifySocket() string { return filepath.Join(r.BootdDir(), "notify.sock") }

// listenForNotices opens the socket for bootd's sd_notify(3). It has a path,
// because an abstract socket would be in this network namespace, not in
// bootd's.
func (r *Rack) listenForNotices() (*net.UnixConn, error) {
	if err := os.Remove(r.notifySocket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: r.notifySocket()})
}

// readNotices reads until the socket is closed: unread notices would fill the
// queue and block bootd.
func readNotices(notices *net.UnixConn, ready chan struct{}) {
	buffer := make([]byte, 4096)
	for said := false; ; {
		n, err := notices.Read(buffer)
		if err != nil {
			return
		}
		if !said && slices.Contains(strings.Split(string(buffer[:n]), "\n"), "READY=1") {
			said = true
			close(ready)
		}
	}
}

// watchBootd records the end of one bootd process and, if requested, starts the
// next.
func (r *Rack) watchBootd(process *child, ended chan struct{}) {
	r.bootd.mu.Lock()
	r.bootd.process = nil
	again := r.bootd.wanted && r.config.SuperviseBootd
	close(ended)
	r.bootd.mu.Unlock()
	r.log.Info("bootd has ended", "state", process.state.String(), "restart", again)
	if !again {
		return
	}
	time.Sleep(restartDelay)
	r.bootd.mu.Lock()
	defer r.bootd.mu.Unlock()
	if !r.bootd.wanted || r.bootd.process != nil {
		return // stopped, or started by hand, in the meantime
	}
	r.bootd.restarts++
	if err := r.launchBootd(); err != nil {
		r.log.Error("bootd does not start again", "error", err)
	}
}

// KillBootd ends bootd with SIGKILL and returns when it is gone. A supervised
// one restarts by itself.
func (r *Rack) KillBootd() error {
	r.bootd.mu.Lock()
	process, ended := r.bootd.process, r.bootd.ended
	r.bootd.mu.Unlock()
	if process == nil {
		return errors.New("kill bootd: it does not run")
	}
	process.kill()
	<-ended
	return nil
}

// LoseBootd ends bootd with SIGKILL and keeps it stopped.
func (r *Rack) LoseBootd() error {
	r.bootd.mu.Lock()
	r.bootd.wanted = false
	r.bootd.mu.Unlock()
	err := r.KillBootd()
	r.bootd.watcher.Wait()
	return err
}

// StopBootd asks bootd to stop (SIGTERM), kills it if it has not stopped within
// 15 seconds, and keeps it stopped. It is not an error when none runs.
func (r *Rack) StopBootd(ctx context.Context) error {
	r.bootd.mu.Lock()
	r.bootd.wanted = false
	process := r.bootd.process
	r.bootd.mu.Unlock()
	if process != nil {
		patience := 15 * time.Second
		if deadline, ok := ctx.Deadline(); ok {
			patience = min(patience, time.Until(deadline))
		}
		process.end(syscall.SIGTERM, patience)
	}
	r.bootd.watcher.Wait()
	return nil
}

// RestartBootd stops bootd and starts it again with the flags it had.
func (r *Rack) RestartBootd(ctx context.Context) error {
	if err := r.StopBootd(ctx); err != nil {
		return err
	}
	r.bootd.mu.Lock()
	flags := r.bootd.flags
	r.bootd.mu.Unlock()
	return r.StartBootd(ctx, flags...)
}
