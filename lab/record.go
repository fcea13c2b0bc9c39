package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rackweft/rackweft/internal/file"
)

// record is Dir/rack.json: everything that the rack has created outside Dir,
// written as it is created, so that Clean can remove it after the owner was
// killed.
type record struct {
	path string
	mu   sync.Mutex
	rackFile
}

type rackFile struct {
	Name       string            `json:"name"`
	BootID     string            `json:"bootID"`
	Owner      processRecord     `json:"owner"`
	Namespaces []namespaceRecord `json:"namespaces"`
	MountsDir  bool              `json:"mountsDir,omitzero"` // it has made /run/netns a mount point
	Processes  []processRecord   `json:"processes"`
}

type processRecord struct {
	What  string `json:"what"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
}

// namespaceRecord names a network namespace. Inode is 0 until it is created.
type namespaceRecord struct {
	Name  string `json:"name"`
	Inode uint64 `json:"inode"`
}

// ErrInUse is returned for a Dir whose rack is up.
var ErrInUse = errors.New("the rack is up")

func newRecord(dir, name string) (*record, error) {
	id, err := bootID()
	if err != nil {
		return nil, err
	}
	start, err := startTime(os.Getpid())
	if err != nil {
		return nil, err
	}
	r := &record{path: filepath.Join(dir, "rack.json"), rackFile: rackFile{
		Name: name, BootID: id, Owner: processRecord{What: "owner", PID: os.Getpid(), Start: start},
	}}
	return r, r.write()
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// write replaces the file. The caller holds mu, or is the only one that knows
// the record.
func (r *record) write() error {
	body, err := json.MarshalIndent(r.rackFile, "", "  ")
	if err != nil {
		return err
	}
	return file.Replace(r.path, append(body, '\n'), file.Options{})
}

func (r *record) addProcess(what string, pid int) error {
	start, err := startTime(pid)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Processes = append(r.Processes, processRecord{What: what, PID: pid, Start: start})
	return r.write()
}

// removeProcess forgets a process that was reaped. A stale line does no harm,
// because its start time matches no living process.
func (r *record) removeProcess(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Processes = slices.DeleteFunc(r.Processes, func(p processRecord) bool { return p.PID == pid })
	if len(r.Namespaces) > 0 { // otherwise the rack is being taken down, and the file with it
		_ = r.write()
	}
}

func (r *record) setNamespace(name string, inode uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.Namespaces {
		if r.Namespaces[i].Name == name {
			r.Namespaces[i].Inode = inode
			return r.write()
		}
	}
	r.Namespaces = append(r.Namespaces, namespaceRecord{Name: name, Inode: inode})
	return r.write()
}

func (r *record) remove() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Namespaces = nil
	if err := os.Remove(r.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func readRackFile(dir string) (*rackFile, error) {
	body, err := os.ReadFile(filepath.Join(dir, "rack.json"))
	if err != nil {
		return nil, err
	}
	return parseRackFile(body)
}

func parseRackFile(body []byte) (*rackFile, error) {
	var file rackFile
	if err := json.Unmarshal(body, &file); err != nil {
		return nil, fmt.Errorf("rack.json: %w", err)
	}
	for _, p := range append([]processRecord{file.Owner}, file.Processes...) {
		if p.PID <= 1 {
			return nil, fmt.Errorf("rack.json: invalid pid %d of %q", p.PID, p.What)
		}
	}
	for _, n := range file.Namespaces {
		if n.Name == "" || strings.ContainsRune(n.Name, '/') || strings.HasPrefix(n.Name, ".") {
			return nil, fmt.Errorf("rack.json: invalid namespace name %q", n.Name)
		}
	}
	return &file, nil
}

// alive reports whether exactly this process is still running: the same pid,
// started at the same tick of the same boot. A zombie does not count.
func (p processRecord) alive(recordedBoot string) bool {
	id, err := bootID()
	if err != nil || id != recordedBoot {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return false
	}
	start, err := parseStartTime(string(stat))
	if err != nil || start != p.Start {
		return false
	}
	state := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
	return !strings.HasPrefix(strings.TrimSpace(state), "Z")
}

// kill ends the recorded process and waits until it is gone. The pidfd is
// opened before the identity is checked, so that the signal cannot reach
// another process that got the pid in between.
func (p processRecord) kill(recordedBoot string) error {
	process, err := os.FindProcess(p.PID)
	if err != nil {
		return nil // gone
	}
	defer func() { _ = process.Release() }()
	if !p.alive(recordedBoot) {
		return nil
	}
	if err := process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s (pid %d): %w", p.What, p.PID, err)
	}
	for range 500 {
		if !p.alive(recordedBoot) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s (pid %d) is still there 5s after SIGKILL", p.What, p.PID)
}

// Clean removes what a rack in dir left behind when its owner was killed:
// processes, namespaces with their taps and bridges, sockets. It is safe to
// call when there is nothing to clean, and fails with ErrInUse while the owner
// is alive (use Down).
func Clean(dir string) error {
	file, err := readRackFile(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clean %s: %w", dir, err)
	}
	if file.Owner.alive(file.BootID) {
		return fmt.Errorf("clean %s: %w, owned by pid %d; take it down first", dir, ErrInUse, file.Owner.PID)
	}
	var errs []error
	for _, p := range file.Processes {
		errs = append(errs, p.kill(file.BootID))
	}
	errs = append(errs, file.removeNamespaces())
	errs = append(errs, removeSockets(dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean %s: %w", dir, err)
	}
	return os.Remove(filepath.Join(dir, "rack.json"))
}

// removeSockets removes the unix sockets below dir, whose servers are gone.
func removeSockets(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if d.Type()&fs.ModeSocket == 0 {
			return nil
		}
		return os.Remove(path)
	})
}
