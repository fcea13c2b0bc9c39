package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
)

// identity is shared by the parts of a guest: its name, paths, timing and
// callbacks. It does not change.
type identity struct {
	name, uid string
	dir       string // disks, record and logs
	run       string // sockets; does not survive a reboot
	log       *slog.Logger
	timing    timing
	event     func(typ api.EventType, reason, message string) // reports to bootd
	reached   func(point string)                              // see Handler.reached
}

func newIdentity(h *Handler, name, uid string) *identity {
	return &identity{name: name, uid: uid, dir: h.disks.GuestDir(uid), run: filepath.Join(h.o.RunDir, uid),
		log: h.o.Log.With("guest", name), timing: h.timing, reached: h.reached,
		event: func(typ api.EventType, reason, message string) { h.event(name, uid, typ, reason, message) }}
}

// lock takes the Guest's lock, which its QEMU holds as long as it lives. It
// returns nil without an error when a QEMU holds it.
func (i *identity) lock() (*os.File, error) {
	return takeLock(filepath.Join(i.dir, "lock"))
}

// takeLock locks a file. It returns nil without an error when another process
// has locked it.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, fmt.Errorf("the lock %s: %w", path, err)
}

// complaint returns the last output of QEMU.
func (i *identity) complaint(err error) string {
	raw, readErr := os.ReadFile(filepath.Join(i.dir, "qemu.log"))
	said := strings.Join(strings.Fields(string(raw[max(0, len(raw)-500):])), " ")
	if readErr != nil || said == "" {
		return fmt.Sprint(err)
	}
	return said
}

// process returns the QEMU that was started last, or ErrGone when it has ended.
func (i *identity) process() (*launch.Process, error) {
	id, err := launch.ReadIdentity(i.run)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, launch.ErrGone
	}
	if err != nil {
		return nil, err
	}
	return launch.Open(id)
}

func (i *identity) consoleLog() string { return filepath.Join(i.dir, "console.log") }
