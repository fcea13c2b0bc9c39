package nodeagent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
)

// hostSpec is the HostSpec as the host has received it. Frames are collected in a
// batch, which a bookmark commits as a whole. On disk it is an index and one file
// per part, named by its digest. A new index is written after the parts that it
// names, so a crash leaves the old state or the new.
type hostSpec struct {
	dir   string
	index index
	batch *batch
	// doubted parts did not reach the digest of bootd's delta. Their digest is not
	// reported, so that bootd sends them whole.
	doubted map[string]bool
	dirty   bool // not on disk yet
}

type index struct {
	Epoch    int64 `json:"epoch"`
	Revision int64 `json:"revision"`
	// Doubted means that the parts are from before this boot, or an earlier one, and
	// that a restored bootd has not confirmed them.
	Doubted    bool             `json:"doubted,omitzero"`
	Parts      map[string]entry `json:"parts,omitempty"`
	Tombstones []api.Tombstone  `json:"tombstones,omitempty"`
}

type entry struct {
	Digest string `json:"digest"`
	UID    string `json:"uid,omitzero"`
	Gone   bool   `json:"gone,omitzero"` // the HostSpec no longer contains it
	value  api.Part
}

type batch struct {
	parts      map[string]entry
	gone       map[string]bool
	tombstones []api.Tombstone
}

// errStale means that this bootd has an older HostSpec than the host.
var errStale = errors.New("bootd is behind")

// maxPartName bounds names that come from the network.
const maxPartName = 128

// loadHostSpec reads the cache. Damaged parts are left out, so that bootd sends
// them again, and named in the errors.
func loadHostSpec(dir string) (*hostSpec, []error) {
	s := &hostSpec{dir: dir, doubted: map[string]bool{}}
	idx, err := readIndex(filepath.Join(dir, "index"))
	s.index = idx
	var faults []error
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		faults = append(faults, fmt.Errorf("the cached HostSpec is damaged; requesting all parts again: %w", err))
	}
	for name, e := range s.index.Parts {
		e.value, err = readPart(s.partPath(e.Digest), e.Digest)
		if err != nil {
			faults = append(faults, fmt.Errorf("cached part %s is damaged; requesting it again: %w", name, err))
			delete(s.index.Parts, name)
			continue
		}
		s.index.Parts[name] = e
	}
	if s.index.Parts == nil {
		s.index.Parts = map[string]entry{}
	}
	return s, faults
}

// readIndex reads a line with the digest of all that follows it.
func readIndex(path string) (index, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return index{}, err
	}
	digest, body, _ := bytes.Cut(raw, []byte("\n"))
	if string(digest) != api.PartDigest(body) {
		return index{}, fmt.Errorf("%s does not match its digest", path)
	}
	var idx index
	if err := json.Unmarshal(body, &idx); err != nil {
		return index{}, fmt.Errorf("%s: %w", path, err)
	}
	for name, e := range idx.Parts {
		if !isDigest(e.Digest) {
			return index{}, fmt.Errorf("%s: part %q has no digest", path, name)
		}
	}
	return idx, nil
}

func readPart(path, digest string) (api.Part, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if got := api.PartDigest(raw); got != digest {
		return nil, fmt.Errorf("its digest is %s, not %s", got, digest)
	}
	return raw, nil
}

func isDigest(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

func (s *hostSpec) partPath(digest string) string {
	return filepath.Join(s.dir, "parts", digest+".json")
}

// save writes the parts and the index that are not on disk yet.
func (s *hostSpec) save() error {
	if !s.dirty {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "parts"), 0o700); err != nil {
		return fmt.Errorf("cache the HostSpec: %w", err)
	}
	keep := map[string]bool{}
	for name, e := range s.index.Parts {
		path := s.partPath(e.Digest)
		keep[filepath.Base(path)] = true
		if _, err := readPart(path, e.Digest); err == nil {
			continue
		}
		if err := errors.Join(os.RemoveAll(path), file.Replace(path, e.value, file.Options{})); err != nil {
			return fmt.Errorf("cache part %s: %w", name, err)
		}
	}
	body, err := json.Marshal(s.index)
	if err != nil {
		return fmt.Errorf("encode the HostSpec's index: %w", err)
	}
	if err := file.Replace(filepath.Join(s.dir, "index"), []byte(api.PartDigest(body)+"\n"+string(body)), file.Options{}); err != nil {
		return fmt.Errorf("cache the HostSpec's index: %w", err)
	}
	s.dirty = false
	return s.prune(keep)
}

// prune removes the files of parts that are no longer in the index.
func (s *hostSpec) prune(keep map[string]bool) error {
	files, err := os.ReadDir(filepath.Join(s.dir, "parts"))
	if err != nil {
		return fmt.Errorf("clean up the HostSpec's cache: %w", err)
	}
	for _, f := range files {
		if keep[f.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.dir, "parts", f.Name())); err != nil {
			return fmt.Errorf("clean up the HostSpec's cache: %w", err)
		}
	}
	return nil
}

// digests returns the digests to report. A part that is gone is not among them:
// if it comes back, bootd must send it whole.
func (s *hostSpec) digests() map[string]string {
	out := map[string]string{}
	for name, e := range s.index.Parts {
		if !e.Gone && !s.doubted[name] {
			out[name] = e.Digest
		}
	}
	return out
}

// reset drops a batch without a bookmark, after the stream broke.
func (s *hostSpec) reset() { s.batch = nil }

// handle processes the parts of a frame; least is the earliest HostSpec that this
// boot may act upon. It reports whether a batch was committed. After an error the
// stream must be opened again.
func (s *hostSpec) handle(f api.ServerFrame, least api.Bookmark) (bool, error) {
	if s.batch == nil {
		s.batch = &batch{parts: map[string]entry{}, gone: map[string]bool{}}
	}
	if f.Part != nil {
		if err := s.stage(*f.Part); err != nil {
			return false, err
		}
	}
	if f.Gone != "" {
		delete(s.batch.parts, f.Gone)
		s.batch.gone[f.Gone] = true
	}
	s.batch.tombstones = append(s.batch.tombstones, f.Tombstones...)
	if f.Bookmark == nil {
		return false, nil
	}
	b := s.batch
	s.batch = nil
	if f.Bookmark.Hold {
		return s.hold(*f.Bookmark, least)
	}
	return s.commit(b, *f.Bookmark)
}

func (s *hostSpec) stage(u api.PartUpdate) error {
	if u.Name == "" || len(u.Name) > maxPartName {
		return fmt.Errorf("invalid part name %.140q: want 1 to %d characters", u.Name, maxPartName)
	}
	value := u.Value
	if u.Delta != nil {
		held := s.held(u.Name)
		if held.Digest != u.Base {
			s.doubted[u.Name] = true
			return fmt.Errorf("part %s: the delta applies to digest %.12s, the host has %.12s: requesting the whole part", u.Name, u.Base, held.Digest)
		}
		var err error
		if value, err = u.Delta.Apply(held.value); err != nil {
			s.doubted[u.Name] = true
			return fmt.Errorf("part %s: %w", u.Name, err)
		}
	}
	if got := api.PartDigest(value); got != u.Digest {
		s.doubted[u.Name] = true
		return fmt.Errorf("part %s: its digest is %.12s, bootd reports %.12s: requesting the whole part", u.Name, got, u.Digest)
	}
	s.batch.parts[u.Name] = entry{Digest: u.Digest, UID: uidOf(value), value: value}
	delete(s.batch.gone, u.Name)
	return nil
}

// held returns the part as of the batch so far.
func (s *hostSpec) held(name string) entry {
	if e, ok := s.batch.parts[name]; ok {
		return e
	}
	if e := s.index.Parts[name]; !e.Gone && !s.batch.gone[name] {
		return e
	}
	return entry{}
}

// uidOf returns "" for parts without an object.
func uidOf(p api.Part) string {
	var v struct {
		UID string `json:"uid"`
	}
	if json.Unmarshal(p, &v) != nil {
		return ""
	}
	return v.UID
}

// hold accepts the epoch of a restored bootd that does not know yet what this host
// should run: the host keeps what it has. Parts that it was not to act upon before,
// because they may run elsewhere by now, stay so.
func (s *hostSpec) hold(mark, least api.Bookmark) (bool, error) {
	if err := s.behind(mark); err != nil {
		return false, err
	}
	s.index.Doubted = s.stale(least)
	if mark.Epoch > s.index.Epoch {
		s.index.Tombstones = nil // the restored store may contain these objects again
	}
	s.index.Epoch, s.index.Revision = mark.Epoch, mark.Revision
	s.dirty = true
	return true, nil
}

// behind refuses a bootd whose history is older than this host's.
func (s *hostSpec) behind(mark api.Bookmark) error {
	if mark.Epoch < s.index.Epoch || mark.Epoch == s.index.Epoch && mark.Revision < s.index.Revision {
		return fmt.Errorf("%w: it is at epoch %d revision %d, this host has seen epoch %d revision %d",
			errStale, mark.Epoch, mark.Revision, s.index.Epoch, s.index.Revision)
	}
	return nil
}

// stale reports whether the parts must not be acted upon, in a boot that acts upon
// no HostSpec before least.
func (s *hostSpec) stale(least api.Bookmark) bool { return s.index.Doubted || s.before(least) }

// commit makes a batch the host's HostSpec, unless the host has a newer one.
func (s *hostSpec) commit(b *batch, mark api.Bookmark) (bool, error) {
	if err := s.behind(mark); err != nil {
		return false, err
	}
	s.index.Doubted = false
	if mark.Epoch > s.index.Epoch {
		s.index.Tombstones = nil // the restored store may contain these objects again
	}
	for name := range b.gone {
		if e, ok := s.index.Parts[name]; ok {
			e.Gone = true
			s.index.Parts[name] = e
		}
	}
	for name, e := range b.parts {
		s.index.Parts[name] = e
		delete(s.doubted, name)
		s.index.Tombstones = slices.DeleteFunc(s.index.Tombstones, func(t api.Tombstone) bool {
			return t.Part == name && t.UID == e.UID
		})
	}
	for _, t := range b.tombstones {
		if t.Part != "" && t.UID != "" && !slices.Contains(s.index.Tombstones, t) {
			s.index.Tombstones = append(s.index.Tombstones, t)
		}
	}
	s.index.Epoch, s.index.Revision = mark.Epoch, mark.Revision
	s.dirty = true
	return true, nil
}

// removed forgets a part that its tombstone has removed.
func (s *hostSpec) removed(t api.Tombstone) {
	if e, ok := s.index.Parts[t.Part]; ok && e.UID == t.UID {
		delete(s.index.Parts, t.Part)
	}
	s.index.Tombstones = slices.DeleteFunc(s.index.Tombstones, func(x api.Tombstone) bool { return x == t })
	s.dirty = true
}

// buried reports whether a tombstone names exactly this part.
func (s *hostSpec) buried(name string, e entry) bool {
	return slices.Contains(s.index.Tombstones, api.Tombstone{Part: name, UID: e.UID})
}

// before reports whether the HostSpec is older than a bookmark.
func (s *hostSpec) before(mark api.Bookmark) bool {
	return s.index.Epoch < mark.Epoch || s.index.Epoch == mark.Epoch && s.index.Revision < mark.Revision
}

// kinds returns the kinds of all known parts and tombstones.
func (s *hostSpec) kinds() map[string]bool {
	out := map[string]bool{}
	for name := range s.index.Parts {
		out[kindOf(name)] = true
	}
	for _, t := range s.index.Tombstones {
		out[kindOf(t.Part)] = true
	}
	return out
}

func kindOf(name string) string {
	kind, _, _ := strings.Cut(name, "/")
	return kind
}

// underlay returns the base part's underlay, even if that part is gone: absence
// removes nothing.
func (s *hostSpec) underlay() api.Underlay {
	value, err := api.DecodePart(api.PartBase, s.index.Parts[api.PartBase].value)
	if err != nil {
		return api.Underlay{}
	}
	return value.(*api.BasePart).Underlay
}

// parts lists what a handler of that kind is to apply, sorted by key. Parts that
// cannot be decoded are left out, and named in the map.
func (s *hostSpec) parts(kind string) ([]Part, map[string]error) {
	var list []Part
	faults := map[string]error{}
	for name, e := range s.index.Parts {
		if kindOf(name) != kind || s.buried(name, e) {
			continue
		}
		value, err := api.DecodePart(name, e.value)
		if err != nil {
			faults[name] = err
			continue
		}
		p := Part{Name: name, UID: e.UID, Digest: e.Digest, Value: value, Want: Present}
		if e.Gone {
			p.Want = Orphaned
		}
		list = append(list, p)
	}
	for _, t := range s.index.Tombstones {
		if kindOf(t.Part) != kind {
			continue
		}
		p := Part{Name: t.Part, UID: t.UID, Want: Removed}
		if e, ok := s.index.Parts[t.Part]; ok && e.UID == t.UID {
			p.Digest = e.Digest
			p.Value, _ = api.DecodePart(t.Part, e.value) // a hint; the uid decides
		}
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b Part) int { return strings.Compare(a.Key(), b.Key()) })
	return list, faults
}
