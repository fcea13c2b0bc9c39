package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// header holds the fields of an image's header that are used here.
type header struct {
	qcow2 bool
	size  int64 // virtual, in bytes
}

// Layout of a qcow2 header (QEMU's docs/interop/qcow2.txt).
const (
	qcow2Magic       = "QFI\xfb"
	backingOffset    = 8
	sizeOffset       = 24
	cryptOffset      = 32
	incompatOffset   = 72
	headerV2, headV3 = 72, 104
	externalDataFile = 1 << 2
	corrupt          = 1 << 1
)

// readHeader reads an image's header, and refuses an image that refers to other
// files.
func readHeader(image io.ReaderAt) (header, error) {
	var raw [headV3]byte
	n, err := image.ReadAt(raw[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return header{}, err
	}
	if n < 4 || string(raw[:4]) != qcow2Magic {
		size, err := length(image)
		return header{size: size}, err
	}
	if n < headerV2 {
		return header{}, errors.New("its qcow2 header is cut off")
	}
	version := binary.BigEndian.Uint32(raw[4:])
	if version != 2 && version != 3 || version == 3 && n < headV3 {
		return header{}, fmt.Errorf("invalid qcow2 version %d: want 2 or 3", version)
	}
	if binary.BigEndian.Uint64(raw[backingOffset:]) != 0 {
		return header{}, errors.New("it has a backing file: flatten it with qemu-img convert")
	}
	if binary.BigEndian.Uint32(raw[cryptOffset:]) != 0 {
		return header{}, errors.New("it is encrypted: convert it with qemu-img convert")
	}
	if version == 3 {
		switch features := binary.BigEndian.Uint64(raw[incompatOffset:]); {
		case features&externalDataFile != 0:
			return header{}, errors.New("its data is in another file: convert it with qemu-img convert")
		case features&corrupt != 0:
			return header{}, errors.New("it is marked as corrupt")
		}
	}
	size := binary.BigEndian.Uint64(raw[sizeOffset:])
	if size > 1<<60 {
		return header{}, fmt.Errorf("invalid size %d in its header", size)
	}
	return header{qcow2: true, size: int64(size)}, nil
}

func length(image io.ReaderAt) (int64, error) {
	s, ok := image.(io.Seeker)
	if !ok {
		return 0, nil
	}
	return s.Seek(0, io.SeekEnd)
}

// virtualSize reads the virtual size of a disk, whatever its base is.
func virtualSize(f io.ReaderAt) (int64, error) {
	var raw [headerV2]byte
	if _, err := f.ReadAt(raw[:], 0); err != nil {
		return 0, err
	}
	size := binary.BigEndian.Uint64(raw[sizeOffset:])
	if string(raw[:4]) != qcow2Magic || size > 1<<60 {
		return 0, errors.New("it is not a qcow2 file")
	}
	return int64(size), nil
}
