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

// Source opens the file that peer asks for. The name has neither leading slashes nor "..". A file that is
// not there is an error that is fs.ErrNotExist. Any other error is logged and not told to the client.
type Source func(ctx context.Context, peer netip.AddrPort, name string) (io.ReadSeekCloser, error)

// FS is a Source that gives everybody the files of root.
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
		content, err := io.ReadAll(f) // tsize needs to know the end
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		return memory{bytes.NewReader(content)}, nil
	}
}

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }
