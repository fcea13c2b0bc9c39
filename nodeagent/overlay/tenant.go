package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/namespace"
)

// tenants manages the Networks' namespaces.
type tenants struct {
	dir        string
	pin, unpin func(ctx context.Context, path string) error
}

func newTenants(o Options) tenants {
	t := tenants{dir: cmp.Or(o.NamespaceDir, "/run/netns"), pin: o.Pin, unpin: o.Unpin}
	if t.pin == nil {
		t.pin = func(_ context.Context, path string) error { return namespace.Pin(path) }
	}
	if t.unpin == nil {
		t.unpin = func(_ context.Context, path string) error { return namespace.Unpin(path) }
	}
	return t
}

func (t tenants) path(network, uid string) string {
	return filepath.Join(t.dir, namespaceName(network, uid))
}

func (t tenants) pathOf(n network) string { return t.path(n.name, n.uid) }

// complete reports whether networks are all that run here.
func (t tenants) complete(networks []network) (bool, error) {
	names, err := namespaces(t.dir)
	if err != nil {
		return false, err
	}
	for _, n := range networks {
		names = slices.DeleteFunc(names, func(name string) bool { return name == namespaceName(n.name, n.uid) })
	}
	return len(names) == 0, nil
}

// open opens a Network's namespace, and creates it if it does not exist.
func (t tenants) open(ctx context.Context, path string) (place, error) {
	tenant, err := openPlace(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return tenant, err
	}
	// The file stays without a namespace if its mount was lost.
	if err := errors.Join(t.unpinIfThere(ctx, path), t.pin(ctx, path)); err != nil {
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

func (t tenants) unpinIfThere(ctx context.Context, path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return t.unpin(ctx, path)
}

func (t tenants) remove(ctx context.Context, host place, path, uid string) error {
	tenant, err := openPlace(path)
	if errors.Is(err, fs.ErrNotExist) {
		return t.unpinIfThere(ctx, path)
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
		return fmt.Errorf("the loopback of %s is marked %q, not %q: the namespace is another Network's", path, alias, mark(uid))
	}
	// The kernel removes the namespace later; the VNI must be free at once.
	if err := removeMarked(tenant, mark(uid)); err != nil {
		return err
	}
	if err := removeMarked(host, mark(uid)); err != nil {
		return err
	}
	return t.unpin(ctx, path)
}

// removeMarked removes the interfaces with that mark.
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
