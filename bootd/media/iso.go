package media

import (
	"bytes"
	"encoding/binary"
	"iter"
	"strings"
)

// iso lays the files out as an ISO 9660 file system of level 1, around the FAT that has them (ECMA-119; El Torito 1.0).
type iso struct {
	root        *node
	directories []*node // in the order of the path table
	fat         *fat
	start       int64 // bytes before the FAT
}

// The first blocks of the image. Those before are the system area.
const (
	volumeBlock = 16 + iota
	bootBlock
	endBlock
	catalogueBlock
	littleTableBlock
	bigTableBlock
	directoryBlock
)

func newISO(root *node, f *fat) *iso {
	i := &iso{root: root, fat: f}
	for level := []*node{root}; len(level) > 0; { // the path table goes by levels
		var below []*node
		for _, n := range level {
			n.extent = directoryBlock + int64(len(i.directories))
			i.directories = append(i.directories, n)
			for _, c := range n.children {
				if c.children != nil {
					below = append(below, c)
				}
			}
		}
		level = below
	}
	i.start = (directoryBlock + int64(len(i.directories))) * block
	return i
}

func (i *iso) bytes() int64 { return i.start + i.fat.bytes() }

// blocks is everything before the FAT, by block.
func (i *iso) blocks() iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		all := map[int][]byte{
			volumeBlock:      i.volume(),
			bootBlock:        i.bootRecord(),
			endBlock:         []byte("\xffCD001\x01"),
			catalogueBlock:   i.catalogue(),
			littleTableBlock: i.pathTable(binary.LittleEndian),
			bigTableBlock:    i.pathTable(binary.BigEndian),
		}
		for _, n := range i.directories {
			all[int(n.extent)] = i.directory(n)
		}
		for at, content := range all {
			if !yield(at, content) {
				return
			}
		}
	}
}

// volume is the primary volume descriptor (ECMA-119 §8.4).
func (i *iso) volume() []byte {
	b := make([]byte, block)
	copy(b, "\x01CD001\x01")
	blanks := func(from, to int, text string) { copy(b[from:to], text+strings.Repeat(" ", to-from)) }
	blanks(8, 40, "")
	blanks(40, 72, "RACKWEFT")
	both32(b[80:], i.bytes()/block)
	both16(b[120:], 1)
	both16(b[124:], 1)
	both16(b[128:], block)
	both32(b[132:], int64(len(i.pathTable(binary.LittleEndian))))
	binary.LittleEndian.PutUint32(b[140:], littleTableBlock)
	binary.BigEndian.PutUint32(b[148:], bigTableBlock)
	copy(b[156:], record("\x00", i.root.extent, block, true))
	blanks(190, 813, "")
	for at := 813; at < 881; at += 17 {
		copy(b[at:], "0000000000000000\x00") // no date
	}
	b[881] = 1
	return b
}

// bootRecord is the boot record volume descriptor, which names the catalogue (El Torito §2.0).
func (i *iso) bootRecord() []byte {
	b := make([]byte, block)
	copy(b, "\x00CD001\x01EL TORITO SPECIFICATION")
	binary.LittleEndian.PutUint32(b[71:], catalogueBlock)
	return b
}

// catalogue has one entry: for UEFI, without emulation (UEFI 2.10 §13.3.2.1).
func (i *iso) catalogue() []byte {
	b := make([]byte, block)
	b[0], b[1] = 1, 0xef // the validation entry, for the platform EFI
	copy(b[4:], "rackweft")
	b[30], b[31] = 0x55, 0xaa
	sum := uint16(0)
	for at := 0; at < 32; at += 2 {
		sum += binary.LittleEndian.Uint16(b[at:])
	}
	binary.LittleEndian.PutUint16(b[28:], -sum)
	b[32] = 0x88 // bootable
	// The count has 16 bits: 0 or 1 mean up to the end of the medium (UEFI 2.10 §13.3.2.1).
	binary.LittleEndian.PutUint16(b[38:], 0)
	binary.LittleEndian.PutUint32(b[40:], uint32(i.start/block))
	return b
}

// pathTable lists the directories (ECMA-119 §9.4).
func (i *iso) pathTable(order binary.AppendByteOrder) []byte {
	number := map[*node]uint16{}
	var b []byte
	for n, d := range i.directories {
		number[d] = uint16(n + 1)
		name := d.name
		if d == i.root {
			name = "\x00"
		}
		b = append(b, byte(len(name)), 0)
		b = order.AppendUint32(b, uint32(d.extent))
		b = order.AppendUint16(b, number[d.parent])
		b = append(b, name...)
		if len(name)%2 == 1 {
			b = append(b, 0)
		}
	}
	return b
}

func (i *iso) directory(n *node) []byte {
	var b bytes.Buffer
	b.Write(record("\x00", n.extent, block, true))
	b.Write(record("\x01", n.parent.extent, block, true))
	for _, c := range n.children {
		if c.children != nil {
			b.Write(record(c.name, c.extent, block, true))
			continue
		}
		name := c.name
		if !strings.Contains(name, ".") {
			name += "."
		}
		b.Write(record(name+";1", i.extent(c), c.file.Size, false))
	}
	return b.Bytes()
}

// extent is the block at which a file begins, in the FAT.
func (i *iso) extent(c *node) int64 {
	if c.clusters == 0 {
		return 0
	}
	return (i.start + i.fat.offset(c.cluster)) / block
}

// record is a directory record (ECMA-119 §9.1).
func record(name string, extent, size int64, directory bool) []byte {
	b := make([]byte, (33+len(name)+1)/2*2)
	b[0] = byte(len(b))
	both32(b[2:], extent)
	both32(b[10:], size)
	copy(b[18:], []byte{80, 1, 1, 0, 0, 0, 0}) // 1980-01-01
	if directory {
		b[25] = 2
	}
	both16(b[28:], 1)
	b[32] = byte(len(name))
	copy(b[33:], name)
	return b
}

func both16(b []byte, v uint16) {
	binary.LittleEndian.PutUint16(b, v)
	binary.BigEndian.PutUint16(b[2:], v)
}

func both32(b []byte, v int64) {
	binary.LittleEndian.PutUint32(b, uint32(v))
	binary.BigEndian.PutUint32(b[4:], uint32(v))
}
