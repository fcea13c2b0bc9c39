package redfish

import (
	"context"
	"fmt"
	"path"
	"strings"
)

// identifyItself finds the system and its quirk.
func (r *driver) identifyItself(ctx context.Context, systemID string) error {
	var root serviceRoot
	if _, err := r.get(ctx, "/redfish/v1/", &root); err != nil {
		return err
	}
	systems, err := r.members(ctx, string(root.Systems.ID))
	if err != nil {
		return fmt.Errorf("list systems: %w", err)
	}
	if r.systemPath, err = chooseSystem(systems, systemID); err != nil {
		return err
	}

	sys, _, err := r.system(ctx)
	if err != nil {
		return err
	}
	m, err := r.manager(ctx, sys)
	if err != nil {
		return err
	}
	id := identity{vendor: string(sys.Manufacturer + " " + root.Vendor), model: string(sys.Model), manager: string(m.Model + " " + root.Product), firmware: string(m.Firmware)}
	for key := range root.Oem {
		id.vendor += " " + key
	}
	for _, target := range sys.Boot.Targets {
		id.bootTargets = append(id.bootTargets, string(target))
	}
	r.quirk = quirkOf(id)
	r.transport.closeConnections = r.quirk.closeConnections
	r.log.Debug("BMC is known", "vendor", id.vendor, "model", id.model, "firmware", id.firmware, "quirk", r.quirk.name)
	return nil
}

func chooseSystem(systems []string, id string) (string, error) {
	var ids []string
	for _, s := range systems {
		if path.Base(s) == id || id == "" && len(systems) == 1 {
			return strings.TrimSuffix(s, "/"), nil
		}
		ids = append(ids, path.Base(s))
	}
	if id == "" {
		return "", fmt.Errorf("BMC has %d systems (%s): say which one by its system id", len(ids), strings.Join(ids, ", "))
	}
	return "", fmt.Errorf("BMC has no system %q, only %s", id, strings.Join(ids, ", "))
}

func (r *driver) system(ctx context.Context) (sys system, etag string, err error) {
	etag, err = r.get(ctx, r.systemPath, &sys)
	return sys, etag, err
}

// manager reads the system's manager; some services do not say which one it is, or refuse to: it is then
// the first of them, or an empty one.
func (r *driver) manager(ctx context.Context, sys system) (manager, error) {
	var m manager
	at := sys.Links.ManagedBy.first()
	if at == "" {
		all, err := r.members(ctx, "/redfish/v1/Managers")
		if err != nil || len(all) == 0 {
			return m, ignoreRefusal(err)
		}
		at = all[0]
	}
	_, err := r.get(ctx, at, &m)
	return m, ignoreRefusal(err)
}
