package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (o *Overlay) pathOf(n network) string { return filepath.Join(o.dir, namespaceName(n.name, n.uid)) }

// openTenant opens a Network's namespace; one that is not there is made.
func (o *Overlay) openTenant(ctx context.Context, path string) (place, error) {
	tenant, err := openPlace(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return tenant, err
	}
	// A file that pins nothing is left when its mount was lost.
	if err := errors.Join(o.unpinIfThere(ctx, path), o.pin(ctx, path)); err != nil {
		return tenant, err
	}
	if tenant, err = openPlace(path); err != nil {
		return tenant, err
	}
	if _, err := setSysctls(tenant.ns, newSysctls()); err != nil {
		tenant.close()
		return tenant, err
	}
	return tenant, nil
}

func (o *Overlay) unpinIfThere(ctx context.Context, path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return o.unpin(ctx, path)
}

func (o *Overlay) removeAt(ctx context.Context, host place, path, uid string) error {
	tenant, err := openPlace(path)
	if errors.Is(err, fs.ErrNotExist) {
		return o.unpinIfThere(ctx, path)
	}
	if err != nil {
		return err
	}
	defer tenant.close()
	links, err := listLinks(tenant.Handle)
	if err != nil {
		return err
	}
	if alias := links["lo"].alias; alias != "" && alias != mark(uid) {
		return fmt.Errorf("the loopback of %s is marked %q, not %q: it is somebody else's", path, alias, mark(uid))
	}
	// The namespace goes in its own time; the VNI must be free at once.
	if err := removeMarked(tenant, mark(uid)); err != nil {
		return err
	}
	if err := removeMarked(host, mark(uid)); err != nil {
		return err
	}
	return o.unpin(ctx, path)
}

// removeMarked takes the interfaces away that are marked so.
func removeMarked(p place, mark string) error {
	links, err := listLinks(p.Handle)
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.alias != mark || l.name == "lo" {
			continue
		}
		if err := p.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: l.index}}); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove %s: %w", l.name, err)
		}
	}
	return nil
}
