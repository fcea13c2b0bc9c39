package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// spawner starts the rack's children, all from one operating system thread that
// lives as long as the rack.
//
// The kernel sends a child's Pdeathsig when the *thread* that forked it ends,
// not the process (prctl(2)), and Go ends threads at any time: a child started
// from any goroutine could be killed at any moment. With one locked thread, the
// signal comes only when the owner ends: then every QEMU ends, too.
type spawner struct {
	record *record
	starts chan startRequest
	done   chan struct{}
	once   sync.Once
}

type startRequest struct {
	cmd    *exec.Cmd
	result chan error
}

func newSpawner(r *record) *spawner {
	s := &spawner{record: r, starts: make(chan startRequest), done: make(chan struct{})}
	go s.run()
	return s
}

func (s *spawner) run() {
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	for {
		select {
		case request := <-s.starts:
			request.result <- request.cmd.Start()
		case <-s.done:
			return
		}
	}
}

// close ends the thread, which kills every child that still runs.
func (s *spawner) close() { s.once.Do(func() { close(s.done) }) }

// child is a process of the rack.
type child struct {
	what    string
	pid     int
	process *os.Process
	exited  chan struct{} // closed once it is reaped
	state   *os.ProcessState
}

// start runs cmd as a child of the spawner's thread and records it. The child is reaped by a goroutine
// that ends with it.
func (s *spawner) start(what string, cmd *exec.Cmd) (*child, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		// Ctrl-C on the terminal must reach only the owner, which then takes
		// the rack down in order.
		Setpgid: true,
	}
	request := startRequest{cmd: cmd, result: make(chan error, 1)}
	select {
	case s.starts <- request:
	case <-s.done:
		return nil, fmt.Errorf("start %s: the rack is closed", what)
	}
	if err := <-request.result; err != nil {
		return nil, fmt.Errorf("start %s: %w", what, err)
	}
	c := &child{what: what, pid: cmd.Process.Pid, process: cmd.Process, exited: make(chan struct{})}
	if err := s.record.addProcess(what, c.pid); err != nil {
		_ = cmd.Process.Kill() // no process may run unrecorded
		_ = cmd.Wait()
		return nil, fmt.Errorf("record %s: %w", what, err)
	}
	go func() {
		_ = cmd.Wait() // the result is in ProcessState
		c.state = cmd.ProcessState
		s.record.removeProcess(c.pid)
		close(c.exited)
	}()
	return c, nil
}

// end asks the child to stop with sig, and kills it when it has not stopped in time.
func (c *child) end(sig os.Signal, patience time.Duration) {
	if err := c.process.Signal(sig); err == nil {
		select {
		case <-c.exited:
			return
		case <-time.After(patience):
		}
	}
	c.kill()
}

// kill ends the child at once and waits until it is reaped.
func (c *child) kill() {
	_ = c.process.Kill() // it may be gone already
	<-c.exited
}

// startTime returns a process's start in clock ticks since boot. With the boot
// id and the pid it identifies the process.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStartTime(string(stat))
}

// userHZ is the rate of the ticks in /proc on x86 and arm64 (USER_HZ).
const userHZ = 100

// parseStartTime reads field 22 of proc_pid_stat(5).
func parseStartTime(stat string) (uint64, error) { return statField(stat, 22) }

// parseCPUTicks adds fields 14 and 15 of proc_pid_stat(5), the time in user and in kernel mode.
func parseCPUTicks(stat string) (uint64, error) {
	user, err := statField(stat, 14)
	if err != nil {
		return 0, err
	}
	kernel, err := statField(stat, 15)
	return user + kernel, err
}

// statField reads a number from /proc/PID/stat. The name in field 2 may contain
// spaces and parentheses.
func statField(stat string, number int) (uint64, error) {
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, errors.New("no process name in /proc/PID/stat")
	}
	fields := strings.Fields(stat[end+1:])
	index := number - 3 // the fields after the name start at 3
	if len(fields) <= index {
		return 0, fmt.Errorf("/proc/PID/stat has %d fields after the name, want more than %d", len(fields), index)
	}
	return strconv.ParseUint(fields[index], 10, 64)
}
