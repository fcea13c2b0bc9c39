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

// What a Guest's shares hold is in the run directory, in memory, and nowhere on
// the host's disk: RUN/shares/NAME/FILE, and the version in RUN/shares/NAME.version.

// shareWait is what bootd may take to hand over a share.
const shareWait = 10 * time.Second

func (g *guest) sharesDir() string { return filepath.Join(g.run, "shares") }

// openShares gives QEMU the directories. A Guest's first start waits until they
// are filled; later ones do not depend on bootd.
func (g *guest) openShares(ctx context.Context, part *api.GuestPart, vm *qemu.VM, files *opened) error {
	err := g.settleShares(ctx, part)
	if err != nil && g.record.Launched == nil {
		return err
	}
	if err != nil {
		g.log.Warn("it starts with shares that are not up to date", "error", err)
	}
	for _, s := range part.Shares {
		if err := g.makeShare(s.Name); err != nil {
			return fmt.Errorf("share %s: %w", s.Name, err)
		}
		dir, err := os.Open(filepath.Join(g.sharesDir(), s.Name))
		if err != nil {
			return fmt.Errorf("share %s: %w", s.Name, err)
		}
		files.add(dir)
		vm.Shares = append(vm.Shares, qemu.Share{Tag: s.Name, Dir: dir})
	}
	return nil
}

// settleShares fetches what shares hold that have changed.
func (g *guest) settleShares(ctx context.Context, part *api.GuestPart) error {
	var faults []error
	for _, s := range part.Shares {
		version, err := os.ReadFile(g.shareVersion(s.Name))
		if err == nil && string(version) == s.Version {
			continue
		}
		if err := g.fetchShare(ctx, s); err != nil {
			faults = append(faults, fmt.Errorf("share %s: %w", s.Name, err))
		}
	}
	return errors.Join(faults...)
}

func (g *guest) shareVersion(name string) string {
	return filepath.Join(g.sharesDir(), name+".version")
}

func (g *guest) fetchShare(ctx context.Context, s api.GuestShare) error {
	ctx, cancel := context.WithTimeout(ctx, shareWait)
	defer cancel()
	content, err := g.h.o.Share(ctx, g.name, s.Name)
	if err != nil {
		return err
	}
	if err := g.fillShare(s.Name, content); err != nil {
		return err
	}
	if content.Version != s.Version {
		return pending("bootd gives another version of it than is wanted: it is asked again")
	}
	return nil
}

// makeShare makes a share's directory, in which QEMU may read and no more.
func (g *guest) makeShare(name string) error {
	dir := filepath.Join(g.sharesDir(), name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chown(dir, 0, g.record.User); err != nil {
		return err
	}
	return os.Chmod(dir, 0o750)
}

// fillShare makes a share hold just that. Each file is the old one or the new
// one at any time.
func (g *guest) fillShare(name string, content api.GuestShareContent) error {
	for file := range content.Files {
		if err := api.ValidateFileName(file); err != nil {
			return err
		}
	}
	if err := g.makeShare(name); err != nil {
		return err
	}
	// What is there while a fill is under way has no version.
	if err := file.Remove(g.shareVersion(name)); err != nil {
		return err
	}
	dir := filepath.Join(g.sharesDir(), name)
	for file, text := range content.Files {
		if err := g.placeShared(filepath.Join(dir, file), text); err != nil {
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
	return file.Replace(g.shareVersion(name), []byte(content.Version), file.Options{})
}

// placeShared puts a file that QEMU may read in place of what is there.
func (g *guest) placeShared(path, text string) error {
	return file.Replace(path, []byte(text), file.Options{
		Mode: 0o440, Owner: &file.Owner{UID: 0, GID: g.record.User},
		Temp: g.sharesDir(), // where no Guest sees it
	})
}
