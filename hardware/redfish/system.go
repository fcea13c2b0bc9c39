package redfish

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strings"

	"github.com/rackweft/rackweft/hardware"
)

// driver speaks to one ComputerSystem of a service. Its calls are never made in parallel.
type driver struct {
	*Service
	wanted     string // id of the system; may be empty
	systemPath string
	quirk      quirk
	identity   hardware.Identity
	serial     serial
	mode       text // boot mode that the system had when it was first read
	recalled   bool // from an earlier login: the system may be elsewhere by now
}

// identifyItself finds the system and its quirk.
func (r *driver) identifyItself(ctx context.Context) error {
	sys, err := r.findSystem(ctx, r.wanted)
	if err != nil {
		return err
	}
	m, err := r.manager(ctx, sys)
	if err != nil {
		return err
	}
	id := identity{vendor: string(sys.Manufacturer + " " + r.root.Vendor), model: string(sys.Model), manager: string(m.Model + " " + r.root.Product), firmware: string(m.Firmware)}
	for key := range r.root.Oem {
		id.vendor += " " + key
	}
	for _, target := range sys.Boot.Targets {
		id.bootTargets = append(id.bootTargets, string(target))
	}
	r.quirk = quirkOf(id)
	r.serial = serial{sys.SerialConsole, m.SerialConsole, m.CommandShell}
	r.transport.closeConnections = r.quirk.closeConnections
	r.identity = hardware.Identity{Vendor: string(sys.Manufacturer), Model: string(sys.Model), Serial: string(sys.SerialNumber), UUID: string(sys.UUID),
		System: path.Base(r.systemPath), BMC: string(m.Model), Firmware: string(m.Firmware)}
	r.log.Debug("BMC is known", "vendor", id.vendor, "model", id.model, "firmware", id.firmware, "quirk", r.quirk.name)
	return nil
}

// findSystem chooses the system and reads it: the one that is named, else the only one, else the only one that can be
// reset. A GPU baseboard is a system without a power of its own.
func (r *driver) findSystem(ctx context.Context, id string) (system, error) {
	if r.root.Systems.ID == "" { // some show all of it to those who are logged in only
		if _, err := r.get(ctx, rootPath, &r.root); err != nil {
			return system{}, err
		}
	}
	paths, err := r.members(ctx, string(r.root.Systems.ID))
	if err != nil {
		return system{}, fmt.Errorf("list systems: %w", err)
	}
	if id != "" || len(paths) == 1 {
		for _, at := range paths {
			if id == "" || path.Base(at) == id {
				r.systemPath = strings.TrimSuffix(at, "/")
				sys, _, err := r.system(ctx)
				return sys, err
			}
		}
		return system{}, fmt.Errorf("BMC has no system %q, only %s", id, strings.Join(baseNames(paths), ", "))
	}
	return r.onlyResettable(ctx, paths)
}

func (r *driver) onlyResettable(ctx context.Context, paths []string) (system, error) {
	var found system
	var all []string
	resettable := 0
	for _, at := range paths {
		var sys system
		if _, err := r.get(ctx, at, &sys); err != nil {
			return system{}, err
		}
		all = append(all, describe(path.Base(at), sys))
		if sys.Actions.Reset.Target != "" {
			resettable++
			r.systemPath, found = strings.TrimSuffix(at, "/"), sys
		}
	}
	if resettable == 1 {
		return found, nil
	}
	return system{}, fmt.Errorf("BMC has %d systems (%s): say which one by its system id", len(paths), strings.Join(all, ", "))
}

// describe tells a system from its neighbours.
func describe(id string, sys system) string {
	words := []string{id}
	for _, word := range []text{sys.Manufacturer, sys.Model} {
		if word != "" {
			words = append(words, string(word))
		}
	}
	if sys.SerialNumber != "" {
		words = append(words, "serial "+string(sys.SerialNumber))
	}
	return strings.Join(words, " ")
}

func baseNames(paths []string) (names []string) {
	for _, at := range paths {
		names = append(names, path.Base(at))
	}
	return names
}

// system reads the system. One that is not where it was at an earlier login is looked for, once: firmware moves things, and
// Lenovo's XCC shows nothing after a restart of which it has not shown the parent.
func (r *driver) system(ctx context.Context) (sys system, etag string, err error) {
	etag, err = r.get(ctx, r.systemPath, &sys)
	var no *refusal
	if !r.recalled || !errors.As(err, &no) || no.status != http.StatusNotFound {
		return sys, etag, err
	}
	r.recalled = false
	if err := r.identifyItself(ctx); err != nil {
		return sys, "", err
	}
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
