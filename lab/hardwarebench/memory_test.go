package hardwarebench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// memoryLimit of bootd, in MiB.
const memoryLimit = 250

// memory is what a process has in memory: all of it but the pages of the store's file, which are page cache. As far as the
// machine has a memory controller the kernel keeps the process, page cache included, below memoryLimit.
type memory struct {
	pid    int
	group  string // the cgroup's directory, empty where there is no controller
	v1     bool
	mu     sync.Mutex
	peak   int // KiB
	err    error
	ending chan struct{}
	ended  sync.WaitGroup
}

func watchMemory(pid int) *memory {
	m := &memory{pid: pid, ending: make(chan struct{})}
	if err := m.limit(); err != nil {
		note("bootd's memory is not limited by the kernel: %v", err)
	}
	m.ended.Go(func() {
		for {
			m.look()
			select {
			case <-m.ending:
				return
			case <-time.After(time.Second):
			}
		}
	})
	return m
}

// limit puts the process into a cgroup of its own, below ours.
func (m *memory) limit() error {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	root, file := "/sys/fs/cgroup", "memory.max"
	for line := range strings.Lines(string(own)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && fields[1] == "memory" {
			root, file, m.v1 = "/sys/fs/cgroup/memory"+fields[2], "memory.limit_in_bytes", true
		}
	}
	group := filepath.Join(root, fmt.Sprintf("rackweft-bench-%d", m.pid))
	if err := os.Mkdir(group, 0o755); err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(group, file), []byte(strconv.Itoa(memoryLimit<<20)), 0)
	if err == nil {
		err = os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(m.pid)), 0)
	}
	if err != nil {
		return errors.Join(err, os.Remove(group))
	}
	m.group = group
	return nil
}

// look adds up the resident pages of the process's mappings, see proc_pid_smaps(5).
func (m *memory) look() {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", m.pid))
	kib, counts := 0, true
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) > 0 && !strings.HasSuffix(fields[0], ":"):
			counts = !strings.HasSuffix(strings.TrimSpace(line), "/member/snap/db")
		case counts && len(fields) == 3 && fields[0] == "Rss:":
			n, convert := strconv.Atoi(fields[1])
			kib, err = kib+n, errors.Join(err, convert)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peak, m.err = max(m.peak, kib), err
}

// most is the most memory until now, in MiB.
func (m *memory) most() (float64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return float64(m.peak) / 1024, m.err
}

// end is called when the process has ended.
func (m *memory) end() {
	close(m.ending)
	m.ended.Wait()
	if m.group == "" {
		return
	}
	if err := os.Remove(m.group); err != nil {
		note("remove bootd's cgroup: %v", err)
	}
}

// under says how the kernel kept the limit, and fails where it could not but by killing.
func (m *memory) under() (string, error) {
	if m.group == "" {
		return "no limit", nil
	}
	file := "memory.events"
	if m.v1 {
		file = "memory.oom_control"
	}
	raw, err := os.ReadFile(filepath.Join(m.group, file))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(raw)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok && n != "0" {
			return "", fmt.Errorf("the kernel killed %s processes of bootd to keep it below %d MiB", n, memoryLimit)
		}
	}
	return fmt.Sprintf("below a limit of %d MiB, page cache included", memoryLimit), nil
}
