package transfer

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// A tree is a header line for each file, followed by its extents: offset (8
// bytes), length (4 bytes, both big-endian) and data, up to an extent of length
// 0. A header with End closes the tree; a tree without it was truncated.

// header describes a file.
type header struct {
	Path string      `json:"path,omitzero"`
	Mode fs.FileMode `json:"mode,omitzero"`
	Size int64       `json:"size,omitzero"`
	End  bool        `json:"end,omitzero"`
}

const (
	maxExtent = 256 << 10
	maxFiles  = 10_000
	maxSize   = 1 << 60
)

// Room returns how many bytes the files take on disk, without holes.
func Room(dir string, files []string) (int64, error) {
	var all int64
	for _, name := range files {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			return 0, err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			all += st.Blocks * 512
		}
	}
	return all, nil
}

// Send writes files under dir without their holes. It calls done with the
// number of bytes sent after each extent.
func Send(ctx context.Context, w io.Writer, dir string, files []string, done func(int64)) error {
	out := bufio.NewWriterSize(w, 64<<10)
	var sent int64
	for _, name := range files {
		if err := sendFile(ctx, out, dir, name, func(n int) { sent += int64(n); done(sent) }); err != nil {
			return fmt.Errorf("send %s: %w", name, err)
		}
	}
	if err := writeHeader(out, header{End: true}); err != nil {
		return err
	}
	return out.Flush()
}

func writeHeader(out io.Writer, h header) error {
	raw, err := json.Marshal(h)
	if err != nil {
		return err
	}
	_, err = out.Write(append(raw, '\n'))
	return err
}

func sendFile(ctx context.Context, out io.Writer, dir, name string, sent func(int)) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := writeHeader(out, header{Path: name, Mode: info.Mode().Perm(), Size: info.Size()}); err != nil {
		return err
	}
	buffer := make([]byte, maxExtent)
	for offset := int64(0); offset < info.Size(); {
		from, to, err := data(f, offset, info.Size())
		if err != nil {
			return err
		}
		for from < to {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			n, err := f.ReadAt(buffer[:min(int64(len(buffer)), to-from)], from)
			if n == 0 {
				return errors.Join(err, errors.New("it became shorter"))
			}
			if err := writeExtent(out, from, buffer[:n]); err != nil {
				return err
			}
			from += int64(n)
			sent(n)
		}
		offset = to
	}
	return writeExtent(out, 0, nil)
}

// data finds the next bytes that are not a hole; from is size when there are
// none.
func data(f *os.File, offset, size int64) (from, to int64, err error) {
	from, err = unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP): // the file system does not support holes
		return offset, size, nil
	case err != nil:
		return 0, 0, err
	}
	to, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
	return from, min(to, size), err
}

func writeExtent(out io.Writer, offset int64, data []byte) error {
	var head [12]byte
	binary.BigEndian.PutUint64(head[:], uint64(offset))
	binary.BigEndian.PutUint32(head[8:], uint32(len(data)))
	if _, err := out.Write(head[:]); err != nil {
		return err
	}
	_, err := out.Write(data)
	return err
}

// Receive reads a tree into dir, which is empty. Everything is synced to disk
// when it returns without an error.
func Receive(r io.Reader, dir *os.Root, done func(int64)) error {
	in := bufio.NewReaderSize(r, maxLine)
	var got int64
	for n := 0; ; n++ {
		var h header
		if err := line(in, &h); err != nil {
			return fmt.Errorf("the tree is truncated or damaged: %w", err)
		}
		if h.End {
			return syncTree(dir)
		}
		if n == maxFiles {
			return fmt.Errorf("a tree of more than %d files", maxFiles)
		}
		if err := receiveFile(in, dir, h, func(n int) { got += int64(n); done(got) }); err != nil {
			return fmt.Errorf("receive %q: %w", h.Path, err)
		}
	}
}

func receiveFile(in io.Reader, dir *os.Root, h header, got func(int)) error {
	if !filepath.IsLocal(h.Path) || h.Path == "." || h.Size < 0 || h.Size > maxSize {
		return errors.New("invalid path or size")
	}
	if err := dir.MkdirAll(filepath.Dir(h.Path), 0o700); err != nil {
		return err
	}
	f, err := dir.OpenFile(h.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, h.Mode.Perm())
	if err != nil {
		return err
	}
	err = fill(in, f, h.Size, got)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func fill(in io.Reader, f *os.File, size int64, got func(int)) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	buffer := make([]byte, maxExtent)
	for {
		var head [12]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return err
		}
		offset, length := binary.BigEndian.Uint64(head[:]), binary.BigEndian.Uint32(head[8:])
		if length == 0 {
			return nil
		}
		if length > maxExtent || offset > uint64(size) || uint64(size)-offset < uint64(length) {
			return fmt.Errorf("%d bytes at %d are not in a file of %d", length, offset, size)
		}
		if _, err := io.ReadFull(in, buffer[:length]); err != nil {
			return err
		}
		if _, err := f.WriteAt(buffer[:length], int64(offset)); err != nil {
			return err
		}
		got(int(length))
	}
}

// syncTree syncs the directories; the files are synced already.
func syncTree(dir *os.Root) error {
	return fs.WalkDir(dir.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		f, err := dir.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}
