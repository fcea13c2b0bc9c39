package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// tpm is the TPM of a Guest: swtpm, a process next to its QEMU. QEMU holds the
// only connection to it, so it ends when QEMU does. Its state is in the Guest's
// directory, and swtpm holds a lock on it as long as it lives.
type tpm struct {
	*identity
	record     *ledger
	conditions *conditions
	launch     starter
}

// tpmUser differs from QEMU's user: a Guest that takes QEMU over must not get
// the TPM's keys.
func (r *record) tpmUser() int { return r.User + 1<<16 }

func (t *tpm) runDir() string { return filepath.Join(t.run, "tpm") }

// start starts the Guest's TPM.
func (t *tpm) start(ctx context.Context, part *api.GuestPart, vm *qemu.VM, files *opened) error {
	if !part.TPM {
		return nil
	}
	program, err := lookUp("swtpm")
	if err != nil {
		return fmt.Errorf("its TPM: install Debian's package swtpm: %w", err)
	}
	lock, err := t.lockState(ctx)
	if err != nil {
		return err
	}
	files.add(lock)
	state, err := t.state()
	if err != nil {
		return fmt.Errorf("the TPM's state: %w", err)
	}
	files.add(state)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("connect the TPM: %w", err)
	}
	vm.TPM = os.NewFile(uintptr(pair[0]), "tpm")
	files.add(vm.TPM)
	control := os.NewFile(uintptr(pair[1]), "tpm control")
	defer func() { _ = control.Close() }()
	log, err := os.OpenFile(filepath.Join(t.dir, "tpm.log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	if err := os.MkdirAll(t.runDir(), 0o700); err != nil {
		return err
	}
	_, err = t.launch(Service{Guest: t.name, UID: t.uid, TPM: true}).Start(ctx, launch.Task{Path: program, Dir: t.runDir(), FirstFile: qemu.FirstFile,
		Args: []string{"socket", "--tpm2", "--terminate", "--ctrl", fmt.Sprintf("type=unixio,clientfd=%d", qemu.FirstFile),
			"--tpmstate", fmt.Sprintf("dir=/proc/self/fd/%d,mode=0600", qemu.FirstFile+1)},
		UID: t.record.tpmUser(), GID: t.record.tpmUser(), Files: []*os.File{control, state}, Kept: []*os.File{lock}, Log: log})
	if err != nil {
		return fmt.Errorf("start its TPM: %w", err)
	}
	return nil
}

// state opens the directory of the TPM's state, which belongs to its user.
func (t *tpm) state() (*os.File, error) {
	dir := filepath.Join(t.dir, "tpm")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := os.Chown(dir, t.record.tpmUser(), t.record.tpmUser()); err != nil {
		return nil, err
	}
	return os.Open(dir)
}

// own gives TPM state that was received from another host to its user here.
func (t *tpm) own() error {
	dir := filepath.Join(t.dir, "tpm")
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, t.record.tpmUser(), t.record.tpmUser())
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// lockState takes the lock on the TPM's state. It ends a swtpm that has not
// ended with its QEMU.
func (t *tpm) lockState(ctx context.Context) (*os.File, error) {
	path := filepath.Join(t.dir, "tpm.lock")
	lock, err := takeLock(path)
	if lock != nil || err != nil {
		return lock, err
	}
	if err := t.end(ctx); err != nil {
		return nil, fmt.Errorf("end the TPM of an earlier run: %w", err)
	}
	lock, err = takeLock(path)
	if lock == nil && err == nil {
		err = fmt.Errorf("the TPM's lock %s is held, but not by a swtpm that nodeagent knows: see `fuser %[1]s` and end that process", path)
	}
	return lock, err
}

// end ends swtpm, by force if it does not end by itself.
func (t *tpm) end(ctx context.Context) error {
	p, err := t.find()
	if err != nil || p == nil {
		return err
	}
	defer p.Close()
	grace, cancel := context.WithTimeout(ctx, t.timing.force)
	defer cancel()
	if p.Wait(grace) == nil {
		return nil
	}
	t.log.Warn("killing a TPM that did not end with its QEMU")
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	return p.Wait(ctx)
}

// find returns the swtpm of the last start, nil when it has ended.
func (t *tpm) find() (*launch.Process, error) {
	id, err := launch.ReadIdentity(t.runDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p, err := launch.Open(id)
	if errors.Is(err, launch.ErrGone) {
		return nil, nil
	}
	return p, err
}

// note reports a TPM that has ended before its Guest: QEMU cannot connect to a
// new one.
func (t *tpm) note() {
	if !t.record.Launched.TPM {
		return
	}
	p, err := t.find()
	if err != nil {
		t.log.Warn("cannot tell whether the TPM is running", "error", err)
		return
	}
	if p != nil {
		p.Close()
		t.conditions.set(conditionTPM, true, "Works", "")
		return
	}
	message := "its TPM ended (see " + filepath.Join(t.dir, "tpm.log") + "): restart the Guest; the content of the TPM is kept"
	if c := t.conditions.get(conditionTPM); c == nil || c.Status != api.False {
		t.event(api.Warning, "TPMEnded", message)
	}
	t.conditions.set(conditionTPM, false, "Ended", message)
}
