package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// shareWait bounds the request for a share.
const shareWait = 10 * time.Second

// shares keeps the directories that QEMU shares with a Guest up to date with
// bootd's. Their content is in the run directory, in memory, and never on the
// host's disk: RUN/shares/NAME/FILE, and the version in
// RUN/shares/NAME.version.
type shares struct {
	*identity
	record *ledger
	fetch  func(ctx context.Context, guest, share string) (api.GuestShareContent, error)
}

func (sh *shares) root() string { return filepath.Join(sh.run, "shares") }

// open passes the directories to QEMU. A Guest's first start waits until they
// are filled; later starts do not depend on bootd.
func (sh *shares) open(ctx context.Context, part *api.GuestPart, vm *qemu.VM, files *opened) error {
	err := sh.settle(ctx, part)
	if err != nil && sh.record.Launched == nil {
		return err
	}
	if err != nil {
		sh.log.Warn("it starts with shares that are not up to date", "error", err)
	}
	for _, s := range part.Shares {
		if err := sh.makeDir(s.Name); err != nil {
			return fmt.Errorf("share %s: %w", s.Name, err)
		}
		dir, err := os.Open(filepath.Join(sh.root(), s.Name))
		if err != nil {
			return fmt.Errorf("share %s: %w", s.Name, err)
		}
		files.add(dir)
		vm.Shares = append(vm.Shares, qemu.Share{Tag: s.Name, Dir: dir})
	}
	return nil
}

// settle fetches the shares that have changed.
func (sh *shares) settle(ctx context.Context, part *api.GuestPart) error {
	var faults []error
	for _, s := range part.Shares {
		version, err := os.ReadFile(sh.version(s.Name))
		if err == nil && string(version) == s.Version {
			continue
		}
		if err := sh.update(ctx, s); err != nil {
			faults = append(faults, fmt.Errorf("share %s: %w", s.Name, err))
		}
	}
	return errors.Join(faults...)
}

func (sh *shares) version(name string) string {
	return filepath.Join(sh.root(), name+".version")
}

func (sh *shares) update(ctx context.Context, s api.GuestShare) error {
	ctx, cancel := context.WithTimeout(ctx, shareWait)
	defer cancel()
	content, err := sh.fetch(ctx, sh.name, s.Name)
	if err != nil {
		return err
	}
	if err := sh.fill(s.Name, content); err != nil {
		return err
	}
	if content.Version != s.Version {
		return pending("bootd returned another version than the part wants: retrying")
	}
	return nil
}

// makeDir creates a share's directory, which QEMU may only read.
func (sh *shares) makeDir(name string) error {
	dir := filepath.Join(sh.root(), name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chown(dir, 0, sh.record.User); err != nil {
		return err
	}
	return os.Chmod(dir, 0o750)
}

// fill replaces the content of a share. At any time each file has either its
// old or its new content.
func (sh *shares) fill(name string, content api.GuestShareContent) error {
	for file := range content.Files {
		if err := api.ValidateFileName(file); err != nil {
			return err
		}
	}
	if err := sh.makeDir(name); err != nil {
		return err
	}
	// A share that is being filled has no version.
	if err := file.Remove(sh.version(name)); err != nil {
		return err
	}
	dir := filepath.Join(sh.root(), name)
	for file, text := range content.Files {
		if err := sh.place(filepath.Join(dir, file), text); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, wanted := content.Files[e.Name()]; wanted {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return file.Replace(sh.version(name), []byte(content.Version), file.Options{})
}

// place replaces a file that QEMU may read.
func (sh *shares) place(path, text string) error {
	return file.Replace(path, []byte(text), file.Options{
		Mode: 0o440, Owner: &file.Owner{UID: 0, GID: sh.record.User},
		Temp: sh.root(), // outside the shared directories
	})
}
