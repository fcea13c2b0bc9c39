// Package media makes the images that BMCs put into virtual CD drives: an ISO 9660 file system (ECMA-119) with an El Torito
// boot catalogue, whose boot entry for UEFI is a FAT32 file system. Both hold the same files, each once: firmware reads
// the FAT, and a boot loader such as GRUB the ISO.
//
// An image is never written anywhere: it is put together as it is read, so that one for every Machine costs nothing.
package media

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
)

// File is a file of an image.
type File struct {
	// Path has names of at most eight characters and an extension of up to three, of A-Z, 0-9 and _, as both file systems
	// take them: "EFI/BOOT/BOOTX64.EFI".
	Path    string
	Size    int64
	Content io.ReaderAt // Size bytes of it
}

const (
	block   = 2048 // of ISO 9660, and a cluster of the FAT
	sector  = 512  // of the FAT
	maxSize = 1<<32 - 1
)

// Image is an image. It is safe for concurrent use as far as its files are.
type Image struct {
	parts []part // in order, not overlapping; zeros between them
	size  int64
}

// part is a piece of an image.
type part struct {
	at, size int64
	content  io.ReaderAt
}

// New makes an image of files. Each must be smaller than 4 GiB, all of them too.
func New(files []File) (*Image, error) {
	root, err := tree(files)
	if err != nil {
		return nil, err
	}
	fat := newFAT(root)
	iso := newISO(root, fat)
	if iso.bytes() > maxSize {
		return nil, fmt.Errorf("the image has %d bytes: want less than 4 GiB", iso.bytes())
	}
	image := &Image{size: iso.bytes()}
	for at, content := range iso.blocks() {
		image.add(int64(at)*block, content)
	}
	for at, content := range fat.metadata() {
		image.add(iso.start+at, content)
	}
	image.parts = append(image.parts, part{iso.start + fat.tableAt, fat.tableSize, fat.table()}, part{iso.start + fat.tableAt + fat.tableSize, fat.tableSize, fat.table()})
	root.walk(func(n *node) {
		if n.clusters > 0 && n.children == nil {
			image.parts = append(image.parts, part{iso.start + fat.offset(n.cluster), n.file.Size, n.file.Content})
		}
	})
	slices.SortFunc(image.parts, func(a, b part) int { return cmp.Compare(a.at, b.at) })
	return image, nil
}

func (i *Image) add(at int64, content []byte) {
	i.parts = append(i.parts, part{at, int64(len(content)), bytes.NewReader(content)})
}

// Size is how many bytes the image has, a multiple of 2048.
func (i *Image) Size() int64 { return i.size }

// ReadAt implements io.ReaderAt. Errors are those of the files.
func (i *Image) ReadAt(b []byte, off int64) (n int, err error) {
	if off < 0 || off >= i.size {
		return 0, io.EOF
	}
	if rest := i.size - off; int64(len(b)) > rest {
		b, err = b[:rest], io.EOF
	}
	clear(b)
	end := off + int64(len(b))
	first, _ := slices.BinarySearchFunc(i.parts, off, func(p part, off int64) int {
		if p.at+p.size <= off {
			return -1
		}
		return 1
	})
	for _, p := range i.parts[first:] {
		if p.at >= end {
			break
		}
		from, to := max(p.at, off), min(p.at+p.size, end)
		if from == to {
			continue
		}
		if read, err := p.content.ReadAt(b[from-off:to-off], from-p.at); int64(read) < to-from {
			return int(from-off) + read, fmt.Errorf("read byte %d of the image: %w", from+int64(read), err)
		}
	}
	return len(b), err
}
