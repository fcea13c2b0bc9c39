package media

import (
	"encoding/binary"
	"iter"
	"slices"
	"strings"
)

// fat lays the files out as a FAT32 file system (Microsoft's FAT32 specification 1.03). Every file is contiguous.
type fat struct {
	root      *node
	clusters  int64
	chains    []int64 // the last cluster of every chain, in order
	tableAt   int64   // where the first of two tables begins
	tableSize int64   // bytes of one
	dataAt    int64
}

const (
	firstCluster    = 2
	minimumClusters = 65525 // with fewer, drivers take it for FAT16
	endOfChain      = 0x0fffffff
	reserved        = 32 // sectors before the tables
	mediaByte       = 0xf8
	directoryBit    = 0x10
	readOnlyBit     = 0x01
)

func newFAT(root *node) *fat {
	f := &fat{root: root}
	next := int64(firstCluster)
	root.walk(func(n *node) {
		n.clusters = 1
		if n.children == nil {
			n.clusters = (n.file.Size + block - 1) / block
		}
		if n.clusters == 0 {
			return // an empty file has none: 0
		}
		n.cluster = next
		next += n.clusters
		f.chains = append(f.chains, next-1)
	})
	f.clusters = max(next-firstCluster, minimumClusters)
	f.tableAt = reserved * sector
	f.tableSize = ((f.clusters+firstCluster)*4 + block - 1) / block * block
	f.dataAt = f.tableAt + 2*f.tableSize // a multiple of the ISO's blocks, so that it can name the files
	return f
}

func (f *fat) bytes() int64 { return f.dataAt + f.clusters*block }

func (f *fat) offset(cluster int64) int64 { return f.dataAt + (cluster-firstCluster)*block }

// metadata is everything but the tables and the files, by offset.
func (f *fat) metadata() iter.Seq2[int64, []byte] {
	return func(yield func(int64, []byte) bool) {
		boot, info := f.bootSector(), infoSector()
		for at, content := range map[int64][]byte{0: boot, 1: info, 6: boot, 7: info} { // the second pair is the backup
			if !yield(at*sector, content) {
				return
			}
		}
		var directories []*node
		f.root.walk(func(n *node) {
			if n.children != nil {
				directories = append(directories, n)
			}
		})
		for _, n := range directories {
			if !yield(f.offset(n.cluster), n.fatDirectory()) {
				return
			}
		}
	}
}

func (f *fat) bootSector() []byte {
	b := make([]byte, sector)
	put := func(at int, v any) { _, _ = binary.Encode(b[at:], binary.LittleEndian, v) }
	copy(b, "\xeb\x58\x90rackweft")
	put(11, uint16(sector))
	b[13] = block / sector
	put(14, uint16(reserved))
	b[16] = 2
	b[21] = mediaByte
	put(24, uint16(63))  // sectors of a track, which nothing uses
	put(26, uint16(255)) // heads
	put(32, uint32(f.bytes()/sector))
	put(36, uint32(f.tableSize/sector))
	put(44, uint32(f.root.cluster))
	put(48, uint16(1)) // the info sector
	put(50, uint16(6)) // the backup
	b[64] = 0x80
	b[66] = 0x29
	put(67, uint32(0x72667765))
	copy(b[71:], "NO NAME    FAT32   ")
	put(510, uint16(0xaa55))
	return b
}

// infoSector is the FSInfo sector. 0xffffffff: the number of free clusters is unknown, which suffices for a read-only image.
func infoSector() []byte {
	b := make([]byte, sector)
	binary.LittleEndian.PutUint32(b, 0x41615252)
	binary.LittleEndian.PutUint32(b[484:], 0x61417272)
	binary.LittleEndian.PutUint32(b[488:], 0xffffffff)
	binary.LittleEndian.PutUint32(b[492:], 0xffffffff)
	binary.LittleEndian.PutUint32(b[508:], 0xaa550000)
	return b
}

func (n *node) fatDirectory() []byte {
	var b []byte
	if n.parent != n {
		parent := n.parent.cluster
		if n.parent.parent == n.parent {
			parent = 0 // ".." names the root as cluster 0 (FAT32 specification 1.03)
		}
		b = append(b, entry(".", directoryBit, n.cluster, 0)...)
		b = append(b, entry("..", directoryBit, parent, 0)...)
	}
	for _, c := range n.children {
		bits := byte(readOnlyBit)
		if c.children != nil {
			bits = directoryBit
		}
		b = append(b, entry(c.name, bits, c.cluster, c.file.Size)...)
	}
	return b
}

// entry is a directory's for a file; its date is the first of FAT.
func entry(name string, bits byte, cluster, size int64) []byte {
	b := make([]byte, 32)
	copy(b, "           ")
	if strings.Trim(name, ".") == "" {
		copy(b, name)
	} else {
		base, extension, _ := strings.Cut(name, ".")
		copy(b, base)
		copy(b[8:], extension)
	}
	b[11] = bits
	const first = 1<<5 | 1 // 1980-01-01
	for _, at := range []int{16, 18, 24} {
		binary.LittleEndian.PutUint16(b[at:], first)
	}
	binary.LittleEndian.PutUint16(b[20:], uint16(cluster>>16))
	binary.LittleEndian.PutUint16(b[26:], uint16(cluster))
	binary.LittleEndian.PutUint32(b[28:], uint32(size))
	return b
}

// table reads one of the two equal tables, which would have a megabyte for every 500 of the image.
func (f *fat) table() tableReader { return tableReader{f} }

type tableReader struct{ *fat }

func (t tableReader) ReadAt(b []byte, off int64) (int, error) {
	cluster, skip := off/4, int(off%4)
	for n := 0; n < len(b); cluster++ {
		var word [4]byte
		binary.LittleEndian.PutUint32(word[:], t.next(cluster))
		n += copy(b[n:], word[skip:])
		skip = 0
	}
	return len(b), nil
}

// next is a cluster's entry in the table.
func (f *fat) next(cluster int64) uint32 {
	switch {
	case cluster == 0:
		return 0x0fffff00 | mediaByte
	case cluster == 1:
		return endOfChain
	case len(f.chains) == 0 || cluster > f.chains[len(f.chains)-1]:
		return 0
	}
	if _, last := slices.BinarySearch(f.chains, cluster); last {
		return endOfChain
	}
	return uint32(cluster + 1)
}
