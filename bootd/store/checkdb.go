package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// Checks of a bbolt database for damage: etcd maps the file into its memory and ends the process with a stack
// dump when it finds damage. See bbolt's internal/common for the layout.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	branchPage, leafPage = 0x01, 0x02
	bucketElement        = 0x01

	pageHeader    = 16
	elementHeader = 16
	bucketHeader  = 16
	metaSize      = 64
)

// database is a database that is being checked.
type database struct {
	r     io.ReaderAt
	page  int64    // size
	pages uint64   // the number of pages
	seen  []uint64 // a bit for each page
	// visit is called with every key of a top-level bucket.
	visit func(bucket string, key, value []byte) error
}

type boltMeta struct{ root, pages, tx uint64 }

// checkDatabase reads all of etcd's database and returns the index of the last log entry in it. Errors say where
// it is damaged.
func checkDatabase(path string) (applied uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return checkDatabaseIn(f, st.Size())
}

func checkDatabaseIn(r io.ReaderAt, size int64) (applied uint64, err error) {
	d := &database{r: r, visit: func(bucket string, key, value []byte) error {
		switch {
		case bucket == "key":
			return checkRevision(key, value)
		case bucket == "meta" && string(key) == "consistent_index":
			if len(value) != 8 {
				return errors.New("the index of the last entry is damaged")
			}
			applied = binary.BigEndian.Uint64(value)
		}
		return nil
	}}
	root, err := d.open(size)
	if err != nil {
		return 0, err
	}
	return applied, d.tree(root, nil, nil, 0, func(flags uint32, name, value []byte) error {
		if flags != bucketElement {
			return fmt.Errorf("%q is not a bucket", name)
		}
		return d.bucket(string(name), value)
	})
}

// open finds the newer of the two meta pages at the file's beginning.
func (d *database) open(size int64) (root uint64, err error) {
	var best boltMeta
	var faults []error
	for _, at := range []int64{0, 4096} {
		m, page, err := d.meta(at)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		if d.page == 0 || m.tx > best.tx {
			d.page, best = page, m
		}
	}
	if d.page == 0 {
		return 0, errors.Join(faults...)
	}
	d.pages = best.pages
	if d.pages > uint64(size/d.page) {
		return 0, fmt.Errorf("it is cut short: it has %d bytes, and its %d pages need %d", size, d.pages, d.pages*uint64(d.page))
	}
	d.seen = make([]uint64, d.pages/64+1)
	return best.root, nil
}

func (d *database) meta(at int64) (boltMeta, int64, error) {
	b := make([]byte, pageHeader+metaSize)
	if _, err := d.r.ReadAt(b, at); err != nil {
		return boltMeta{}, 0, fmt.Errorf("read its beginning: %w", err)
	}
	b = b[pageHeader:]
	sum := fnv.New64a()
	_, _ = sum.Write(b[:56])
	switch {
	case binary.LittleEndian.Uint32(b) != boltMagic || binary.LittleEndian.Uint32(b[4:]) != boltVersion:
		return boltMeta{}, 0, errors.New("its beginning is not that of a database")
	case binary.LittleEndian.Uint64(b[56:]) != sum.Sum64():
		return boltMeta{}, 0, errors.New("the checksum of its beginning is wrong")
	case binary.LittleEndian.Uint32(b[8:]) != 4096:
		return boltMeta{}, 0, fmt.Errorf("it has pages of %d bytes: want 4096", binary.LittleEndian.Uint32(b[8:]))
	}
	return boltMeta{root: binary.LittleEndian.Uint64(b[16:]), pages: binary.LittleEndian.Uint64(b[40:]), tx: binary.LittleEndian.Uint64(b[48:])}, 4096, nil
}

// bucket checks the keys of one bucket; a small one is stored inline.
func (d *database) bucket(name string, value []byte) error {
	if len(value) < bucketHeader {
		return fmt.Errorf("bucket %q is damaged", name)
	}
	fn := func(flags uint32, key, value []byte) error {
		if flags != 0 {
			return fmt.Errorf("bucket %q holds another", name)
		}
		return d.visit(name, key, value)
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return d.tree(root, nil, nil, 0, fn)
	}
	if len(value) < bucketHeader+pageHeader {
		return fmt.Errorf("bucket %q is damaged", name)
	}
	inline := value[bucketHeader:]
	if binary.LittleEndian.Uint16(inline[8:]) != leafPage {
		return fmt.Errorf("bucket %q is damaged", name)
	}
	elements, err := d.elements(inline, true)
	if err != nil {
		return fmt.Errorf("bucket %q: %w", name, err)
	}
	return visitLeaf(elements, nil, nil, fn)
}

// maxDepth is more than any tree of 2 GiB has.
const maxDepth = 20

// tree checks a page and those below it, whose keys lie in [low, high).
func (d *database) tree(id uint64, low, high []byte, depth int, fn func(flags uint32, key, value []byte) error) error {
	b, err := d.read(id)
	if err != nil {
		return err
	}
	flags := binary.LittleEndian.Uint16(b[8:])
	if flags != branchPage && flags != leafPage || depth > maxDepth {
		return fmt.Errorf("page %d is damaged: its kind is %#x", id, flags)
	}
	elements, err := d.elements(b, flags == leafPage)
	if err != nil {
		return fmt.Errorf("page %d is damaged: %w", id, err)
	}
	if flags == leafPage {
		if err := visitLeaf(elements, low, high, fn); err != nil {
			return fmt.Errorf("page %d is damaged: %w", id, err)
		}
		return nil
	}
	if len(elements) == 0 {
		return fmt.Errorf("page %d is damaged: it has no child", id)
	}
	for i, e := range elements {
		if err := within(e.key, low, high, elements, i); err != nil {
			return fmt.Errorf("page %d is damaged: %w", id, err)
		}
		end := high
		if i+1 < len(elements) {
			end = elements[i+1].key
		}
		if err := d.tree(e.page, e.key, end, depth+1, fn); err != nil {
			return err
		}
	}
	return nil
}

// read reads a page with its overflow pages. A page belongs to one tree only.
func (d *database) read(id uint64) ([]byte, error) {
	if id < 2 || id >= d.pages || d.seen[id/64]&(1<<(id%64)) != 0 {
		return nil, fmt.Errorf("page %d is named and cannot be: its page or the one that names it is damaged", id)
	}
	head := make([]byte, pageHeader)
	if _, err := d.r.ReadAt(head, int64(id)*d.page); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	more := uint64(binary.LittleEndian.Uint32(head[12:]))
	if binary.LittleEndian.Uint64(head) != id || more >= d.pages-id {
		return nil, fmt.Errorf("page %d is damaged: its header says page %d with %d more", id, binary.LittleEndian.Uint64(head), more)
	}
	for i := range more + 1 {
		word, bit := &d.seen[(id+i)/64], uint64(1)<<((id+i)%64)
		if *word&bit != 0 {
			return nil, fmt.Errorf("page %d is damaged: it overlaps another", id)
		}
		*word |= bit
	}
	b := make([]byte, int64(more+1)*d.page)
	if _, err := d.r.ReadAt(b, int64(id)*d.page); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	return b, nil
}

type element struct {
	flags      uint32
	key, value []byte
	page       uint64
}

// elements returns a page's elements. bbolt writes them without gaps, so that a wrong count or length is
// detected.
func (d *database) elements(b []byte, leaf bool) ([]element, error) {
	n := int(binary.LittleEndian.Uint16(b[10:]))
	next := pageHeader + n*elementHeader
	if next > len(b) {
		return nil, fmt.Errorf("it cannot hold %d elements", n)
	}
	list := make([]element, n)
	for i := range list {
		at := pageHeader + i*elementHeader
		h := b[at : at+elementHeader]
		e := &list[i]
		var pos, ksize, vsize uint32
		if leaf {
			e.flags, pos, ksize, vsize = binary.LittleEndian.Uint32(h), binary.LittleEndian.Uint32(h[4:]), binary.LittleEndian.Uint32(h[8:]), binary.LittleEndian.Uint32(h[12:])
		} else {
			pos, ksize, e.page = binary.LittleEndian.Uint32(h), binary.LittleEndian.Uint32(h[4:]), binary.LittleEndian.Uint64(h[8:])
		}
		if uint64(at)+uint64(pos) != uint64(next) || uint64(next)+uint64(ksize)+uint64(vsize) > uint64(len(b)) || ksize == 0 {
			return nil, fmt.Errorf("element %d does not lie where it must", i)
		}
		e.key = b[next : next+int(ksize)]
		e.value = b[next+int(ksize) : next+int(ksize)+int(vsize)]
		next += int(ksize) + int(vsize)
	}
	return list, nil
}

func visitLeaf(elements []element, low, high []byte, fn func(flags uint32, key, value []byte) error) error {
	for i, e := range elements {
		if err := within(e.key, low, high, elements, i); err != nil {
			return err
		}
		if err := fn(e.flags, e.key, e.value); err != nil {
			return err
		}
	}
	return nil
}

// within checks the order of keys.
func within(key, low, high []byte, elements []element, i int) error {
	if bytes.Compare(key, low) < 0 || high != nil && bytes.Compare(key, high) >= 0 || i > 0 && bytes.Compare(elements[i-1].key, key) >= 0 {
		return fmt.Errorf("key %q is not in order", key)
	}
	return nil
}

// checkRevision checks one revision of one key in etcd's format. It contains its own number twice; the store's
// values have a checksum.
func checkRevision(key, value []byte) error {
	tombstone := len(key) == 18 && key[17] == 't'
	if len(key) != 17 && !tombstone || key[8] != '_' {
		return fmt.Errorf("%x is not a revision", key)
	}
	var kv mvccpb.KeyValue
	if err := proto.Unmarshal(value, &kv); err != nil || len(kv.Key) == 0 || len(kv.ProtoReflect().GetUnknown()) > 0 {
		return fmt.Errorf("revision %x is not a key and value", key)
	}
	if tombstone {
		return nil
	}
	if uint64(kv.ModRevision) != binary.BigEndian.Uint64(key) || kv.CreateRevision > kv.ModRevision || kv.CreateRevision <= 0 || kv.Version <= 0 {
		return fmt.Errorf("%s: its revision is %d, and it lies under %x", kv.Key, kv.ModRevision, key)
	}
	_, err := opened(string(kv.Key), kv.Value)
	return err
}
