package tftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
)

// Source opens the file that peer requests. The name has neither leading
// slashes nor "..". For a missing file it returns fs.ErrNotExist. Other errors
// are logged and not sent to the client.
type Source func(ctx context.Context, peer netip.AddrPort, name string) (io.ReadSeekCloser, error)

// FS returns a Source that serves the files of root to everyone.
func FS(root fs.FS) Source {
	return func(_ context.Context, _ netip.AddrPort, name string) (io.ReadSeekCloser, error) {
		f, err := root.Open(name)
		if err != nil {
			return nil, err
		}
		st, err := f.Stat()
		if err == nil && !st.Mode().IsRegular() {
			err = fmt.Errorf("%s: %w: not a regular file", name, fs.ErrNotExist)
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if s, ok := f.(io.ReadSeekCloser); ok {
			return s, nil
		}
		content, err := io.ReadAll(f) // tsize needs the size
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		return memory{bytes.NewReader(content)}, nil
	}
}

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }
