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

// A Guest's TPM is swtpm, a process beside its QEMU, which holds the only
// connection to it: it ends when QEMU does. Its state is in the Guest's own
// directory, and a lock on it is swtpm's as long as that lives.

// tpmUser is of another user than QEMU, which a Guest might come to be in
// charge of: the TPM's keys are none of QEMU's.
func (r *record) tpmUser() int { return r.User + 1<<16 }

func (g *guest) tpmRun() string { return filepath.Join(g.run, "tpm") }

// openTPM starts the Guest's TPM.
func (g *guest) openTPM(ctx context.Context, part *api.GuestPart, vm *qemu.VM, files *opened) error {
	if !part.TPM {
		return nil
	}
	program, err := lookUp("swtpm")
	if err != nil {
		return fmt.Errorf("its TPM: install Debian's package swtpm: %w", err)
	}
	lock, err := g.lockTPM(ctx)
	if err != nil {
		return err
	}
	files.add(lock)
	state, err := g.tpmState()
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
	log, err := os.OpenFile(filepath.Join(g.dir, "tpm.log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	if err := os.MkdirAll(g.tpmRun(), 0o700); err != nil {
		return err
	}
	service := Service{Guest: g.name, UID: g.uid, TPM: true}
	launcher := launch.Launcher{Command: g.h.o.Launch, Run: func(ctx context.Context, argv []string) error { return g.h.o.Start(ctx, service, argv) }}
	_, err = launcher.Start(ctx, launch.Task{Path: program, Dir: g.tpmRun(), FirstFile: qemu.FirstFile,
		Args: []string{"socket", "--tpm2", "--terminate", "--ctrl", fmt.Sprintf("type=unixio,clientfd=%d", qemu.FirstFile),
			"--tpmstate", fmt.Sprintf("dir=/proc/self/fd/%d,mode=0600", qemu.FirstFile+1)},
		UID: g.record.tpmUser(), GID: g.record.tpmUser(), Files: []*os.File{control, state}, Kept: []*os.File{lock}, Log: log})
	if err != nil {
		return fmt.Errorf("start its TPM: %w", err)
	}
	return nil
}

// tpmState opens the directory with the TPM's state, which is its user's.
func (g *guest) tpmState() (*os.File, error) {
	dir := filepath.Join(g.dir, "tpm")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := os.Chown(dir, g.record.tpmUser(), g.record.tpmUser()); err != nil {
		return nil, err
	}
	return os.Open(dir)
}

// ownTPM gives the TPM's state that came from another host to its user here.
func (g *guest) ownTPM() error {
	dir := filepath.Join(g.dir, "tpm")
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, g.record.tpmUser(), g.record.tpmUser())
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// lockTPM takes the lock on the TPM's state. A swtpm that has not ended with its
// QEMU is ended.
func (g *guest) lockTPM(ctx context.Context) (*os.File, error) {
	path := filepath.Join(g.dir, "tpm.lock")
	lock, err := takeLock(path)
	if lock != nil || err != nil {
		return lock, err
	}
	if err := g.endTPM(ctx); err != nil {
		return nil, fmt.Errorf("end the TPM of an earlier run: %w", err)
	}
	lock, err = takeLock(path)
	if lock == nil && err == nil {
		err = fmt.Errorf("the TPM's lock %s is held, but not by a swtpm that nodeagent knows: see `fuser %[1]s` and end that process", path)
	}
	return lock, err
}

// endTPM has swtpm end, by force when it does not by itself.
func (g *guest) endTPM(ctx context.Context) error {
	p, err := g.tpm()
	if err != nil || p == nil {
		return err
	}
	defer p.Close()
	grace, cancel := context.WithTimeout(ctx, g.timing.force)
	defer cancel()
	if p.Wait(grace) == nil {
		return nil
	}
	g.log.Warn("the TPM does not end with its QEMU, and is killed")
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	return p.Wait(ctx)
}

// tpm is the swtpm of the last start, nil when it has ended.
func (g *guest) tpm() (*launch.Process, error) {
	id, err := launch.ReadIdentity(g.tpmRun())
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

// noteTPM tells of a TPM that has ended before its Guest: QEMU cannot be given
// another one.
func (g *guest) noteTPM() {
	if !g.record.Launched.TPM {
		return
	}
	p, err := g.tpm()
	if err != nil {
		g.log.Warn("cannot see whether the TPM lives", "error", err)
		return
	}
	if p != nil {
		p.Close()
		g.conditions.set(conditionTPM, true, "Works", "")
		return
	}
	message := "its TPM has ended (see " + filepath.Join(g.dir, "tpm.log") + "): restart it for a TPM that works; what that holds is kept"
	if c := g.conditions.get(conditionTPM); c == nil || c.Status != api.False {
		g.event(api.Warning, "TPMEnded", message)
	}
	g.conditions.set(conditionTPM, false, "Ended", message)
}
