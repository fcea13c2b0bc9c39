package nodeagent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
)

// hostSpec is what the host knows of its HostSpec. Frames gather in a batch,
// which a bookmark commits as a whole. On disk it is an index and one file per
// part, named by its digest: a new index is put in place after the parts that
// it names, so a crash leaves the old state or the new.
type hostSpec struct {
	dir   string
	index index
	batch *batch
	// doubted parts are held with a digest that bootd's delta did not lead to:
	// their digest is not announced, so that bootd sends them whole.
	doubted map[string]bool
	dirty   bool // not on disk yet
}

type index struct {
	Epoch    int64 `json:"epoch"`
	Revision int64 `json:"revision"`
	// Doubted says that the parts are from before this boot, or before one since,
	// and that bootd, which was restored, has not said that they hold.
	Doubted    bool             `json:"doubted,omitzero"`
	Parts      map[string]entry `json:"parts,omitempty"`
	Tombstones []api.Tombstone  `json:"tombstones,omitempty"`
}

type entry struct {
	Digest string `json:"digest"`
	UID    string `json:"uid,omitzero"`
	Gone   bool   `json:"gone,omitzero"` // the HostSpec names it no more
	value  api.Part
}

type batch struct {
	parts      map[string]entry
	gone       map[string]bool
	tombstones []api.Tombstone
}

// errStale means that this bootd is behind what the host already knows.
var errStale = errors.New("bootd is behind")

// maxPartName keeps names sane that come from the network.
const maxPartName = 128

// loadHostSpec reads the cache. What is damaged is left out, to be asked for
// anew, and named in the errors.
func loadHostSpec(dir string) (*hostSpec, []error) {
	s := &hostSpec{dir: dir, doubted: map[string]bool{}}
	idx, err := readIndex(filepath.Join(dir, "index"))
	s.index = idx
	var faults []error
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		faults = append(faults, fmt.Errorf("the cached HostSpec is damaged; all parts are asked for anew: %w", err))
	}
	for name, e := range s.index.Parts {
		e.value, err = readPart(s.partPath(e.Digest), e.Digest)
		if err != nil {
			faults = append(faults, fmt.Errorf("cached part %s is damaged and asked for anew: %w", name, err))
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

// save writes what is not on disk yet.
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

// prune removes the files of parts that the index names no more.
func (s *hostSpec) prune(keep map[string]bool) error {
	files, err := os.ReadDir(filepath.Join(s.dir, "parts"))
	if err != nil {
		return fmt.Errorf("tidy the HostSpec's cache: %w", err)
	}
	for _, f := range files {
		if keep[f.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.dir, "parts", f.Name())); err != nil {
			return fmt.Errorf("tidy the HostSpec's cache: %w", err)
		}
	}
	return nil
}

// digests are those to announce. A part that is gone is not among them: bootd
// must send it whole should it come back.
func (s *hostSpec) digests() map[string]string {
	out := map[string]string{}
	for name, e := range s.index.Parts {
		if !e.Gone && !s.doubted[name] {
			out[name] = e.Digest
		}
	}
	return out
}

// reset forgets a batch that no bookmark closed: the stream broke.
func (s *hostSpec) reset() { s.batch = nil }

// handle takes in what a frame says about parts; least is the HostSpec that this
// boot acts upon at the earliest. It reports whether a batch was committed. After an error the stream must be opened again.
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
		return fmt.Errorf("a part is called %.140q: its name must have 1 to %d characters", u.Name, maxPartName)
	}
	value := u.Value
	if u.Delta != nil {
		held := s.held(u.Name)
		if held.Digest != u.Base {
			s.doubted[u.Name] = true
			return fmt.Errorf("part %s: the delta is to %.12s, held is %.12s: asking for it whole", u.Name, u.Base, held.Digest)
		}
		var err error
		if value, err = applyDelta(held.value, *u.Delta); err != nil {
			s.doubted[u.Name] = true
			return fmt.Errorf("part %s: %w", u.Name, err)
		}
	}
	if got := api.PartDigest(value); got != u.Digest {
		s.doubted[u.Name] = true
		return fmt.Errorf("part %s: its digest is %.12s, bootd says %.12s: asking for it whole", u.Name, got, u.Digest)
	}
	s.batch.parts[u.Name] = entry{Digest: u.Digest, UID: uidOf(value), value: value}
	delete(s.batch.gone, u.Name)
	return nil
}

// held is the part as the batch leaves it so far.
func (s *hostSpec) held(name string) entry {
	if e, ok := s.batch.parts[name]; ok {
		return e
	}
	if e := s.index.Parts[name]; !e.Gone && !s.batch.gone[name] {
		return e
	}
	return entry{}
}

// uidOf returns "" for parts that stand for no object.
func uidOf(p api.Part) string {
	var v struct {
		UID string `json:"uid"`
	}
	if json.Unmarshal(p, &v) != nil {
		return ""
	}
	return v.UID
}

// applyDelta changes a Network's peers, which are kept in the order of their
// leases so that both ends come to the same digest.
func applyDelta(p api.Part, d api.PeerDelta) (api.Part, error) {
	var n api.NetworkPart
	if err := json.Unmarshal(p, &n); err != nil {
		return nil, fmt.Errorf("a delta to what is no Network: %w", err)
	}
	peers := map[string]api.NetworkPeer{}
	for _, peer := range n.Peers {
		peers[peer.Lease.String()] = peer
	}
	for _, lease := range d.Remove {
		delete(peers, lease)
	}
	for _, peer := range d.Put {
		peers[peer.Lease.String()] = peer
	}
	n.Peers = slices.SortedFunc(maps.Values(peers), func(a, b api.NetworkPeer) int {
		if c := a.Lease.Addr().Compare(b.Lease.Addr()); c != 0 {
			return c
		}
		return a.Lease.Bits() - b.Lease.Bits()
	})
	return api.EncodePart(n)
}

// hold takes the epoch of a bootd that was restored and does not know yet what
// this host should be: the host goes on with what it has. What it was not to
// act upon before, for it may run elsewhere by now, it does not act upon now.
func (s *hostSpec) hold(mark, least api.Bookmark) (bool, error) {
	if err := s.behind(mark); err != nil {
		return false, err
	}
	s.index.Doubted = s.stale(least)
	if mark.Epoch > s.index.Epoch {
		s.index.Tombstones = nil // the restored store may know these objects again
	}
	s.index.Epoch, s.index.Revision = mark.Epoch, mark.Revision
	s.dirty = true
	return true, nil
}

// behind refuses a bootd whose history is not the one that this host knows.
func (s *hostSpec) behind(mark api.Bookmark) error {
	if mark.Epoch < s.index.Epoch || mark.Epoch == s.index.Epoch && mark.Revision < s.index.Revision {
		return fmt.Errorf("%w: it is at epoch %d revision %d, this host has seen epoch %d revision %d",
			errStale, mark.Epoch, mark.Revision, s.index.Epoch, s.index.Revision)
	}
	return nil
}

// stale reports whether the parts are not to be acted upon, in a boot that acts
// upon no HostSpec before least.
func (s *hostSpec) stale(least api.Bookmark) bool { return s.index.Doubted || s.before(least) }

// commit makes a batch the host's knowledge, unless the host knows better.
func (s *hostSpec) commit(b *batch, mark api.Bookmark) (bool, error) {
	if err := s.behind(mark); err != nil {
		return false, err
	}
	s.index.Doubted = false
	if mark.Epoch > s.index.Epoch {
		s.index.Tombstones = nil // the restored store may know these objects again
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

// removed forgets what a tombstone took away.
func (s *hostSpec) removed(t api.Tombstone) {
	if e, ok := s.index.Parts[t.Part]; ok && e.UID == t.UID {
		delete(s.index.Parts, t.Part)
	}
	s.index.Tombstones = slices.DeleteFunc(s.index.Tombstones, func(x api.Tombstone) bool { return x == t })
	s.dirty = true
}

// buried reports whether a tombstone names this very part.
func (s *hostSpec) buried(name string, e entry) bool {
	return slices.Contains(s.index.Tombstones, api.Tombstone{Part: name, UID: e.UID})
}

// before reports whether the HostSpec is older than a bookmark.
func (s *hostSpec) before(mark api.Bookmark) bool {
	return s.index.Epoch < mark.Epoch || s.index.Epoch == mark.Epoch && s.index.Revision < mark.Revision
}

// kinds of all the parts and tombstones that are known.
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

// underlay is the base part's, also when that is gone: absence removes nothing.
func (s *hostSpec) underlay() api.Underlay {
	value, err := api.DecodePart(api.PartBase, s.index.Parts[api.PartBase].value)
	if err != nil {
		return api.Underlay{}
	}
	return value.(*api.BasePart).Underlay
}

// parts lists what a handler of that kind is to make true, sorted by key.
// Parts that cannot be decoded are left out, and named in the map.
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
			p.Value, _ = api.DecodePart(t.Part, e.value) // a hint; the uid is what counts
		}
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b Part) int { return strings.Compare(a.Key(), b.Key()) })
	return list, faults
}
