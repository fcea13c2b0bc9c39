package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/disk"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// snapshots creates a Guest's snapshots, reverts to them and deletes them. They
// are qcow2's internal snapshots: a running QEMU creates those of all disks in
// one transaction, and no file appears or disappears that a start would have to
// know. A tag contains the snapshot's name and the request that created it,
// which tells an unfinished snapshot from an earlier one of the same name.
type snapshots struct {
	*identity
	record *ledger
	vm     *instance
	ladder *ladder
	agent  *guestAgent
	disks  *disk.Store
	export *exporter
}

// snapshot is a snapshot that the Guest has.
type snapshot struct {
	api.GuestSnapshot
	Tag string `json:"tag"` // its tag inside the disks
}

func (s snapshot) same(other snapshot) bool { return s.Tag == other.Tag }

// begun is a snapshot operation in progress.
type begun struct {
	api.GuestRequest
	Of snapshot `json:"of"`
}

// snapshotTime bounds a snapshot operation in QEMU.
const snapshotTime = 5 * time.Minute

// snapshotsFile lists the Guest's snapshots, oldest first. It moves with the
// disks.
const snapshotsFile = "snapshots.json"

func (sn *snapshots) read() ([]snapshot, error) {
	path := filepath.Join(sn.dir, snapshotsFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []snapshot
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

// edit edits the list and writes it.
func (sn *snapshots) edit(edit func([]snapshot) []snapshot) error {
	list, err := sn.read()
	if err == nil {
		err = writeJSON(filepath.Join(sn.dir, snapshotsFile), edit(list))
	}
	if err != nil {
		return fmt.Errorf("the list of its snapshots: %w", err)
	}
	return nil
}

// listed returns the list as it is reported.
func (sn *snapshots) listed() []api.GuestSnapshot {
	all, err := sn.read()
	if err != nil {
		sn.log.Warn("cannot report its snapshots", "error", err)
	}
	var list []api.GuestSnapshot
	for _, s := range all {
		list = append(list, s.GuestSnapshot)
	}
	return list
}

// step carries out requests about snapshots. It returns when to look again; 0
// without an error means that the other steps continue.
func (sn *snapshots) step(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	if part.Transfer != nil && part.Transfer.Role != api.TransferSource || sn.record.Given != "" {
		return 0, nil // it belongs to another host, or is about to
	}
	if sn.record.Begun == nil {
		r := part.Request
		stopping := sn.vm.running != nil && part.State == api.GuestStopped
		if !r.AboutSnapshot() || r.ID == sn.record.Request || stopping || !sn.ladder.atRest() {
			return 0, nil
		}
		sn.reached("snapshot: asked for")
		of, err := sn.judge(part, r)
		if err != nil {
			return time.Millisecond, sn.fail(r, err)
		}
		if err := sn.record.change(func(rec *record) { rec.Begun = &begun{*r, of} }); err != nil {
			return 0, err
		}
		sn.reached("snapshot: begun")
	}
	if !sn.ladder.atRest() {
		return 0, nil
	}
	return time.Millisecond, sn.goThrough(ctx)
}

// atRest reports whether the disks may be changed: by a QEMU that answers and
// is not stopping, or because no QEMU runs.
func (l *ladder) atRest() bool {
	if l.vm.running == nil {
		return true
	}
	return l.stop == nil && slices.Contains([]string{qemuRunning, qemuPaused, qemuPrelaunch}, l.vm.running.state)
}

// judge returns the snapshot of a request, or why the request is refused.
func (sn *snapshots) judge(part *api.GuestPart, r *api.GuestRequest) (snapshot, error) {
	if err := api.ValidateName(r.Snapshot); err != nil {
		return snapshot{}, err
	}
	if sn.export.active {
		return snapshot{}, errors.New("its disks are being exported: wait until the export has ended")
	}
	all, err := sn.read()
	if err != nil {
		return snapshot{}, err
	}
	at := slices.IndexFunc(all, func(s snapshot) bool { return s.Name == r.Snapshot })
	known := at >= 0
	var of snapshot
	if known {
		of = all[at]
	}
	switch {
	case r.Verb == api.GuestSnapshotCreate && len(all) >= api.MaxSnapshots:
		return of, fmt.Errorf("the Guest has %d snapshots, which is the limit: delete one", len(all))
	case r.Verb == api.GuestSnapshotCreate && known:
		return of, fmt.Errorf("there is a snapshot %s from %s: delete it, or choose another name", of.Name, of.Time.Format(time.RFC3339))
	case r.Verb == api.GuestSnapshotCreate:
		return sn.planned(part, r)
	case !known:
		return of, fmt.Errorf("there is no snapshot %s", r.Snapshot)
	case r.Verb == api.GuestSnapshotRevert:
		return of, sn.judgeRevert(part, of)
	}
	return of, nil
}

// planned returns the snapshot to create.
func (sn *snapshots) planned(part *api.GuestPart, r *api.GuestRequest) (snapshot, error) {
	s := snapshot{GuestSnapshot: api.GuestSnapshot{Name: r.Snapshot, Time: time.Now().UTC().Truncate(time.Second)}, Tag: r.Snapshot + "@" + r.ID}
	for _, d := range part.Disks {
		if d.Format == disk.Raw {
			return s, fmt.Errorf("disk %s is raw, and raw disks have no snapshots: export it, or give the Guest a qcow2 disk of another name", d.Name)
		}
		s.Disks = append(s.Disks, d.Name)
	}
	if len(s.Disks) == 0 {
		return s, errors.New("the Guest has no disks")
	}
	return s, nil
}

func (sn *snapshots) judgeRevert(part *api.GuestPart, of snapshot) error {
	switch {
	case sn.vm.running != nil || part.State != api.GuestStopped:
		return errors.New("the Guest runs: stop it first")
	case of.Broken:
		return fmt.Errorf("snapshot %s is incomplete: an earlier deletion was interrupted; delete it", of.Name)
	}
	for _, d := range part.Disks {
		if !slices.Contains(of.Disks, d.Name) {
			return fmt.Errorf("disk %s is newer than snapshot %s, and cannot be reverted: remove it from spec.disks first", d.Name, of.Name)
		}
	}
	return nil
}

// goThrough completes the operation in progress. An agent that was killed may
// have begun it, so every step may already be done.
func (sn *snapshots) goThrough(ctx context.Context) error {
	b := sn.record.Begun
	of, err := sn.carryOut(ctx, b)
	var waits pending
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx) // it is continued later
	case errors.As(err, &waits):
		return err
	case err != nil && b.Verb == api.GuestSnapshotRevert: // it cannot be undone
		return fmt.Errorf("revert to snapshot %s: %w", of.Name, err)
	case err != nil:
		return sn.fail(&b.GuestRequest, err)
	}
	message := describe(b.Verb, of)
	if err := sn.record.result(&b.GuestRequest, message, nil, func(r *record) { r.Begun = nil }); err != nil {
		return err
	}
	sn.event(api.Normal, "SnapshotDone", message)
	return nil
}
func describe(verb string, of snapshot) string {
	disks := "disk " + strings.Join(of.Disks, ", ")
	switch verb {
	case api.GuestSnapshotRevert:
		return fmt.Sprintf("reverted to snapshot %s from %s: %s", of.Name, of.Time.Format(time.RFC3339), disks)
	case api.GuestSnapshotDelete:
		return fmt.Sprintf("snapshot %s is deleted", of.Name)
	}
	return fmt.Sprintf("snapshot %s is made of %s: %s", of.Name, disks, worth(of.Consistency))
}

// drop deletes all snapshots from disks that are retained.
func (sn *snapshots) drop(ctx context.Context, lock *os.File) {
	all, err := sn.read()
	if err != nil {
		sn.log.Warn("cannot delete the snapshots of retained disks", "error", err)
	}
	if b := sn.record.Begun; b != nil {
		all = append(all, b.Of)
	}
	for _, of := range all {
		of.Disks = slices.DeleteFunc(slices.Clone(of.Disks), func(name string) bool { return !slices.Contains(sn.record.retained(), name) })
		if err := sn.untag(ctx, disk.Tool{User: sn.record.User, Lock: lock}, of); err != nil {
			sn.log.Warn("cannot delete a snapshot of a retained disk", "snapshot", of.Tag, "error", err)
		}
	}
}

// worth describes a consistency to a user.
func worth(c api.Consistency) string {
	switch c {
	case api.ConsistentFrozen:
		return "its file systems were frozen"
	case api.ConsistentStopped:
		return "the Guest did not run"
	}
	return "crash-consistent, as after a loss of power"
}

func (sn *snapshots) fail(r *api.GuestRequest, failure error) error {
	failure = fmt.Errorf("%s %s: %w", strings.ReplaceAll(r.Verb, "-", " "), r.Snapshot, failure)
	err := sn.record.result(r, "", failure, func(rec *record) { rec.Begun = nil })
	if err == nil {
		sn.event(api.Warning, "SnapshotFailed", failure.Error())
	}
	return err
}

// carryOut does the operation and returns the resulting snapshot. A pending
// error is neither success nor failure.
func (sn *snapshots) carryOut(ctx context.Context, b *begun) (snapshot, error) {
	tool, release, err := sn.tool()
	if err != nil {
		return b.Of, err
	}
	defer release()
	switch b.Verb {
	case api.GuestSnapshotCreate:
		of, err := sn.create(ctx, tool, b.Of)
		if err != nil {
			return of, err
		}
		sn.reached("snapshot: made, not listed")
		return of, sn.edit(func(list []snapshot) []snapshot {
			if slices.ContainsFunc(list, of.same) {
				return list
			}
			return append(list, of)
		})
	case api.GuestSnapshotRevert:
		for _, name := range b.Of.Disks {
			if err := sn.disks.Snapshot(ctx, tool, sn.wanted(name), disk.Revert, b.Of.Tag); err != nil {
				return b.Of, err
			}
			sn.reached("snapshot: a disk is reverted")
		}
		return b.Of, nil
	case api.GuestSnapshotDelete:
		err := sn.edit(func(list []snapshot) []snapshot { // from now on it is incomplete
			for i := range list {
				list[i].Broken = list[i].Broken || b.Of.same(list[i])
			}
			return list
		})
		if err != nil {
			return b.Of, err
		}
		sn.reached("snapshot: to be deleted")
		if err := sn.untag(ctx, tool, b.Of); err != nil {
			return b.Of, err
		}
		sn.reached("snapshot: deleted, still listed")
		return b.Of, sn.edit(func(list []snapshot) []snapshot { return slices.DeleteFunc(list, b.Of.same) })
	}
	return b.Of, fmt.Errorf("this nodeagent does not know %q", b.Verb)
}

// tool returns qemu-img for disks that no QEMU has open.
func (sn *snapshots) tool() (t disk.Tool, release func(), err error) {
	t.User = sn.record.User
	if sn.vm.running != nil {
		return t, func() {}, nil // QEMU holds the lock
	}
	if t.Lock, err = sn.lock(); err != nil {
		return t, nil, err
	}
	if t.Lock == nil {
		return t, nil, pending("its disks are in use by an operation of an earlier nodeagent")
	}
	return t, func() { _ = t.Lock.Close() }, nil
}

// wanted describes a disk that has snapshots.
func (sn *snapshots) wanted(name string) disk.Wanted {
	return disk.Wanted{Network: sn.record.Part.Network, Guest: sn.name, UID: sn.uid, GuestDisk: api.GuestDisk{Name: name, Format: disk.QCOW2}}
}

// tags holds the snapshots inside a disk.
type tags struct {
	open bool // QEMU has the disk open
	all  []string
}

// inspect reads the tags inside the disks of a snapshot.
func (sn *snapshots) inspect(ctx context.Context, t disk.Tool, of snapshot) (map[string]tags, error) {
	var nodes []struct {
		Node  string `json:"node-name"`
		Image struct {
			Snapshots []struct{ Name string }
		}
	}
	if sn.vm.running != nil {
		if err := sn.vm.command(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
			return nil, err
		}
	}
	found := map[string]tags{}
	for _, n := range nodes {
		if name, ok := strings.CutPrefix(n.Node, qemu.DiskNode("")); ok {
			has := tags{open: true}
			for _, s := range n.Image.Snapshots {
				has.all = append(has.all, s.Name)
			}
			found[name] = has
		}
	}
	for _, name := range of.Disks {
		if found[name].open {
			continue
		}
		all, err := sn.disks.Snapshots(ctx, t, sn.wanted(name))
		if err != nil {
			return nil, err
		}
		found[name] = tags{all: all}
	}
	return found, nil
}

// create creates a snapshot of all disks.
func (sn *snapshots) create(ctx context.Context, t disk.Tool, of snapshot) (snapshot, error) {
	found, err := sn.inspect(ctx, t, of)
	if err != nil {
		return of, err
	}
	of.Consistency = api.ConsistentCrash
	made := func(name string) bool { return slices.Contains(found[name].all, of.Tag) }
	lacks := func(name string) bool { return !made(name) }
	if !slices.ContainsFunc(of.Disks, lacks) {
		return of, nil // by an agent that was killed afterwards, which knew the state of the Guest
	}
	if err := sn.untag(ctx, t, of); err != nil {
		return of, pending(err.Error())
	}
	if sn.vm.running == nil {
		of.Consistency = api.ConsistentStopped
		for _, name := range of.Disks {
			err = errors.Join(err, sn.disks.Snapshot(ctx, t, sn.wanted(name), disk.Create, of.Tag))
			sn.reached("snapshot: in a disk")
		}
	} else {
		for _, name := range of.Disks {
			if !found[name].open {
				return of, fmt.Errorf("disk %s is not in the running Guest yet: restart it first", name)
			}
		}
		of.Consistency = sn.agent.freeze(ctx)
		sn.reached("snapshot: frozen")
		err = sn.tagAll(ctx, of)
		if err := sn.agent.thaw(ctx); err != nil {
			sn.event(api.Warning, "NotThawed", err.Error()+"; it will be retried")
		}
	}
	if err == nil {
		return of, nil
	}
	if undo := sn.untag(ctx, t, of); undo != nil { // such as when QEMU has just ended; the next look retries
		return of, pending(errors.Join(err, undo).Error())
	}
	return of, err
}

// tagAll makes QEMU create a snapshot of all disks or of none.
func (sn *snapshots) tagAll(ctx context.Context, of snapshot) error {
	type action struct {
		Type string            `json:"type"`
		Data map[string]string `json:"data"`
	}
	var actions []action
	for _, name := range of.Disks {
		actions = append(actions, action{"blockdev-snapshot-internal-sync", map[string]string{"device": qemu.DiskNode(name), "name": of.Tag}})
	}
	return sn.vm.commandIn(ctx, snapshotTime, "transaction", map[string]any{"actions": actions}, nil)
}

// untag deletes a snapshot from all disks that have it.
func (sn *snapshots) untag(ctx context.Context, t disk.Tool, of snapshot) error {
	found, err := sn.inspect(ctx, t, of)
	if err != nil {
		return err
	}
	for _, name := range of.Disks {
		switch has := found[name]; {
		case !slices.Contains(has.all, of.Tag):
		case has.open:
			err = sn.vm.commandIn(ctx, snapshotTime, "blockdev-snapshot-delete-internal-sync", map[string]string{"device": qemu.DiskNode(name), "name": of.Tag}, nil)
		default:
			err = sn.disks.Snapshot(ctx, t, sn.wanted(name), disk.Delete, of.Tag)
		}
		if err != nil {
			return err
		}
		sn.reached("snapshot: out of a disk")
	}
	return nil
}
