package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// record is the state of a Guest that must survive a reboot of the host.
type record struct {
	Name string        `json:"name"`
	User int           `json:"user"` // the user id of its QEMU; see tpmUser
	Part api.GuestPart `json:"part"` // the last wanted part
	// Launched describes the last start, nil when there was none.
	Launched *launched `json:"launched,omitempty"`
	// Expected: QEMU should be running; when it is not, it has crashed.
	Expected bool `json:"expected,omitzero"`
	// Ended is how the last run ended, nil while it runs or when that is
	// unknown.
	Ended   *ended `json:"ended,omitempty"`
	Crash   *ended `json:"crash,omitempty"`  // the last failure
	Request string `json:"request,omitzero"` // ID of the last request that was done
	// Given is the ID of the move by which the Guest was given up: it does not
	// run here until bootd sends Back for that move.
	Given string `json:"given,omitzero"`
	// Received is the ID of the move that was received completely.
	Received string `json:"received,omitzero"`
	// Result is the result of the last request.
	Result *api.GuestResult `json:"result,omitempty"`
	// Begun is the snapshot operation in progress: it is completed whatever is
	// wanted meanwhile.
	Begun *begun `json:"begun,omitempty"`
	// Frozen is set before the Guest's file systems are frozen, and cleared
	// when they are thawed.
	Frozen bool `json:"frozen,omitzero"`
	// Export names the disks that are being exported. A later agent uses it to
	// clean up in QEMU and on disk.
	Export []string `json:"export,omitempty"`
	// Access is what the last start may fetch its config with, nil when there
	// is no config.
	Access *access `json:"access,omitempty"`
	Seeded bool    `json:"seeded,omitzero"` // cloud-init has had its user data once
}

type launched struct {
	BootID      string           `json:"bootID"`
	Time        time.Time        `json:"time"`
	Accelerator qemu.Accelerator `json:"accelerator"`
	Reason      string           `json:"reason,omitzero"` // for the choice of the accelerator
	Machine     string           `json:"machine"`         // digest of the settings that take effect only at a start
	TPM         bool             `json:"tpm,omitzero"`
	VHost       bool             `json:"vhost,omitzero"` // its packets bypass QEMU
	Moved       bool             `json:"moved,omitzero"` // it has run on another host before
}

type ended struct {
	Word   string    `json:"word,omitzero"` // reason of the event and the condition
	Reason string    `json:"reason"`
	Failed bool      `json:"failed"`
	Time   time.Time `json:"time"`
}

const recordFile = "record.json"

// readRecord reads a Guest's record, fs.ErrNotExist when it has none.
func readRecord(dir string) (record, error) {
	path := filepath.Join(dir, recordFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		return record{}, err
	}
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return record{}, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// write replaces the record.
func (r record) write(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, recordFile), r); err != nil {
		return fmt.Errorf("write the Guest's record: %w", err)
	}
	return nil
}

// writeJSON replaces a file: after a loss of power either the old content is
// there or the new one.
func writeJSON(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return file.Replace(path, raw, file.Options{})
}

// images returns the images that must be kept as long as the Guest exists.
func (r record) images() []api.SHA256 {
	var list []api.SHA256
	for _, d := range r.Part.Disks {
		list = append(list, d.Image)
	}
	if k := r.Part.Kernel; k != nil {
		list = append(list, k.Kernel, k.Initrd)
	}
	return list
}

func (r record) retained() []string {
	var names []string
	for _, d := range r.Part.Disks {
		if d.Retain {
			names = append(names, d.Name)
		}
	}
	return names
}

// ledger keeps a Guest's record equal to the file, except for the end of a run
// that could not be written.
type ledger struct {
	dir     string
	*record // nil until it is read or created
}

func (l *ledger) known() bool { return l.record != nil }

// loadRecord reads the Guest's record, or creates one with a user id of its
// own.
func (g *guest) loadRecord(part *api.GuestPart) error {
	if g.record.known() {
		return nil
	}
	r, err := readRecord(g.dir)
	if err == nil {
		g.record.record = &r
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	g.h.users.Lock()
	defer g.h.users.Unlock()
	others, err := g.h.records()
	if err != nil {
		return err
	}
	r = record{Name: g.name, User: freeUser(g.h.o.FirstUser, others), Part: *part}
	if err := r.write(g.dir); err != nil {
		return err
	}
	g.record.record = &r
	g.reached("create: recorded")
	return nil
}

func freeUser(first int, others []record) int {
	taken := map[int]bool{}
	for _, o := range others {
		taken[o.User] = true
	}
	for taken[first] {
		first++
	}
	return first
}

// change edits the record and writes it; if it cannot be written the edit is
// undone.
func (l *ledger) change(edit func(*record)) error {
	next := *l.record
	edit(&next)
	if err := next.write(l.dir); err != nil {
		return err
	}
	l.record = &next
	return nil
}

// expect records whether QEMU should be running.
func (l *ledger) expect(there bool) error {
	if l.Expected == there {
		return nil
	}
	return l.change(func(r *record) {
		r.Expected = there
		if there {
			r.Ended = nil
		}
	})
}

// remember records the wanted part: a tombstone needs it, and it names the
// images in use.
func (l *ledger) remember(part *api.GuestPart) error {
	same := digest(*part) == digest(l.Part)
	stopped := part.State == api.GuestStopped && l.Ended != nil
	if same && !stopped {
		return nil
	}
	return l.change(func(r *record) {
		r.Part = *part
		if stopped {
			r.Ended = nil // a user who stops it may start it again
		}
	})
}

// asked reports whether a request about the Guest's run is still to be done.
func (l *ledger) asked(r *api.GuestRequest) bool {
	return r != nil && r.ID != l.Request && !r.AboutSnapshot()
}

// doneRequest records that a part's request is done.
func (l *ledger) doneRequest(part *api.GuestPart) error {
	if !l.asked(part.Request) {
		return nil
	}
	return l.result(part.Request, "", nil)
}

// result records the result of a request: a message or the error.
func (l *ledger) result(r *api.GuestRequest, message string, failure error, edits ...func(*record)) error {
	result := &api.GuestResult{ID: r.ID, Verb: r.Verb, Message: message, Time: time.Now().UTC().Truncate(time.Second)}
	if failure != nil {
		result.Failed, result.Message = true, failure.Error()
	}
	return l.change(func(rec *record) {
		rec.Request, rec.Result = r.ID, result
		for _, edit := range edits {
			edit(rec)
		}
	})
}

func (r *record) launchTime() time.Time {
	if r.Launched == nil {
		return time.Time{}
	}
	return r.Launched.Time
}

// give records the move by which the Guest was given up, "" for none.
func (l *ledger) give(move string) error {
	if l.Given == move {
		return nil
	}
	return l.change(func(r *record) { r.Given = move })
}
