package hostspec

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
)

// frames reads a host's frames, one JSON object per line.
type frames struct {
	r        *bufio.Reader
	deadline func(time.Time) error
	patience time.Duration // how long to wait for a frame
}

// hello reads the first frame.
func (f *frames) hello() (*api.Hello, error) {
	first, err := f.next()
	if err != nil {
		return nil, err
	}
	if first.Hello == nil {
		return nil, errors.New("its first frame is not a hello")
	}
	return first.Hello, nil
}

// next reads a frame.
func (f *frames) next() (*api.HostFrame, error) {
	_ = f.deadline(time.Now().Add(f.patience)) // fails only on a connection that is gone
	line, err := f.line()
	if err != nil {
		return nil, fmt.Errorf("read a frame: %w", err)
	}
	frame := new(api.HostFrame)
	if err := json.Unmarshal(line, frame); err != nil {
		return nil, fmt.Errorf("decode a frame: %w", err)
	}
	return frame, nil
}

func (f *frames) line() ([]byte, error) {
	var line []byte
	for {
		part, err := f.r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxFrame:
			return nil, fmt.Errorf("it is longer than %d bytes", maxFrame)
		case err == nil:
			return line, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}
