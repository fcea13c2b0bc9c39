package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// bootd is the rack's boot daemon.
type bootd struct {
	mu       sync.Mutex    // guards what follows
	process  *child        // nil when it does not run
	ended    chan struct{} // closed once the end of process is noted here
	wanted   bool          // and is started again when it ends, if supervised
	flags    []string
	restarts int
	watcher  sync.WaitGroup
}

// restartDelay is systemd's RestartSec default.
const restartDelay = 100 * time.Millisecond

// BootdDir holds bootd's state, run directory, configuration and log.
func (r *Rack) BootdDir() string { return filepath.Join(r.config.Dir, "bootd") }

// BootdLog is the file with all that bootd said.
func (r *Rack) BootdLog() string { return filepath.Join(r.BootdDir(), "bootd.log") }

// BootdRunDir is bootd's --run-dir, where its API socket is.
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

// StartBootd starts bootd in its namespace, with extra flags after the rack's own. It returns when the
// process runs; that it serves is for its API to say.
func (r *Rack) StartBootd(ctx context.Context, flags ...string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.bootd.mu.Lock()
	defer r.bootd.mu.Unlock()
	if r.bootd.process != nil {
		return errors.New("start bootd: it runs already")
	}
	if _, err := os.Stat(filepath.Join(r.config.Binaries, "bootd")); err != nil {
		return fmt.Errorf("start bootd: %w; `make build` makes it", err)
	}
	for _, dir := range []string{"state", "run"} {
		if err := os.MkdirAll(filepath.Join(r.BootdDir(), dir), 0o700); err != nil {
			return fmt.Errorf("start bootd: %w", err)
		}
	}
	if len(r.config.BootdConfig) > 0 {
		if err := os.WriteFile(filepath.Join(r.BootdDir(), "bootd.yaml"), r.config.BootdConfig, 0o600); err != nil {
			return fmt.Errorf("start bootd: %w", err)
		}
	}
	r.bootd.flags, r.bootd.wanted = flags, true
	return r.launchBootd()
}

// launchBootd needs bootd.mu to be held.
func (r *Rack) launchBootd() error {
	argv := []string{filepath.Join(r.config.Binaries, "bootd"),
		"--state-dir", filepath.Join(r.BootdDir(), "state"), "--run-dir", r.BootdRunDir()}
	if len(r.config.BootdConfig) > 0 {
		argv = append(argv, "--config", filepath.Join(r.BootdDir(), "bootd.yaml"))
	}
	argv = inside(r.bootdNamespace(), append(argv, r.bootd.flags...)...)
	log, err := os.OpenFile(r.BootdLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start bootd: %w", err)
	}
	defer func() { _ = log.Close() }() // the child has its own
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	process, err := r.spawner.start("bootd", cmd)
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	r.bootd.process, r.bootd.ended = process, ended
	r.bootd.watcher.Go(func() { r.watchBootd(process, ended) })
	return nil
}

// watchBootd waits for the end of one bootd process and, if that is asked for, starts the next.
func (r *Rack) watchBootd(process *child, ended chan struct{}) {
	<-process.exited
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

// KillBootd ends bootd with SIGKILL and returns when it is gone. A supervised one comes back by itself.
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

// StopBootd asks bootd to stop (SIGTERM), kills it when it has not in 15 seconds, and keeps it stopped.
// It is no error that none runs.
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
