package httpboot

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"
)

// Transfer is the progress or the end of sending a file or blob.
type Transfer struct {
	Peer      netip.AddrPort
	Digest    string // of a blob, "sha256:…"; else empty
	File      string // name of a boot file; else empty
	UserAgent string
	Offset    int64 // offset of the requested part
	Total     int64 // bytes of the requested part
	Sent      int64 // bytes of it that the kernel has accepted, which may still be in transit
	Size      int64 // of the whole file
	Duration  time.Duration
	Err       error // why it ended early; nil while it runs, and if everything was sent
}

// Whole reports whether the client has received the file to its last byte, in
// one transfer or by resuming.
func (t Transfer) Whole() bool {
	return t.Err == nil && t.Sent == t.Total && t.Offset+t.Total == t.Size
}

// chunk is how much must be sent within one write timeout: at 60 s at least 9
// kB/s.
const chunk = 512 << 10

// transferWriter forwards a body, extends the client's deadline with every
// chunk that it accepts, and counts.
type transferWriter struct {
	http.ResponseWriter
	control  *http.ResponseController
	timeout  time.Duration
	progress func(Transfer) // may be nil
	start    time.Time
	reported time.Time

	status int
	t      Transfer
}

// WriteHeader derives the part to be sent from the headers that
// http.ServeContent has set.
func (w *transferWriter) WriteHeader(status int) {
	w.status = status
	if status == http.StatusPartialContent {
		// Several ranges come as multipart/byteranges, without this header; then Total stays the size.
		var end, size int64
		if _, err := fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-%d/%d", &w.t.Offset, &end, &size); err == nil {
			w.t.Total = end - w.t.Offset + 1
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// ReadFrom is called by http.ServeContent with an *io.LimitedReader over the
// content. The chunks are again an *io.LimitedReader directly over the content,
// because package net looks for an *os.File exactly there, and then uses
// sendfile(2).
func (w *transferWriter) ReadFrom(src io.Reader) (int64, error) {
	left := int64(1<<63 - 1)
	limited, ok := src.(*io.LimitedReader)
	if ok {
		src, left = limited.R, limited.N
	}
	var total int64
	for total < left {
		want := min(chunk, left-total)
		if err := w.moreTime(); err != nil {
			return total, err
		}
		n, err := io.Copy(w.ResponseWriter, &io.LimitedReader{R: src, N: want})
		total += n
		if ok {
			limited.N -= n
		}
		w.count(n, err)
		if err != nil || n < want {
			return total, err
		}
	}
	return total, nil
}

func (w *transferWriter) Write(p []byte) (int, error) {
	if err := w.moreTime(); err != nil {
		return 0, err
	}
	n, err := w.ResponseWriter.Write(p)
	w.count(int64(n), err)
	return n, err
}

func (w *transferWriter) moreTime() error {
	err := w.control.SetWriteDeadline(time.Now().Add(w.timeout))
	if err != nil {
		w.t.Err = fmt.Errorf("set the write deadline: %w", err)
	}
	return err
}

func (w *transferWriter) count(n int64, err error) {
	w.t.Sent += n
	now := time.Now()
	w.t.Duration = now.Sub(w.start)
	if err != nil {
		w.t.Err = err
		return
	}
	if w.progress != nil && now.Sub(w.reported) >= time.Second {
		w.reported = now
		w.progress(w.t)
	}
}
