package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"regexp"
	"time"
)

// Version is the format's. A reader accepts this version and no later one.
const Version = 1

const formatName = "rackweft backup"

// The pieces of a backup.
const (
	headerPiece  = "header.json"
	digestsPiece = "digests.json"

	SealKey = "seal.key" // the keys that seal Secrets, the one that seals first
	CACert  = "ca/ca.crt"
	CAKey   = "ca/ca.key"
	// StorePrefix is followed by a number: Records of the store, one JSON object
	// a line.
	StorePrefix = "store/"
	// BlobPrefix is followed by the 64 hexadecimal digits of the blob's SHA-256.
	BlobPrefix = "blobs/sha256/"
)

// Limits of a reader. Blobs are limited by the disk only.
const (
	maxHeader  = 64 << 10
	maxSmall   = 1 << 20  // seal key, CA
	maxChunk   = 16 << 20 // of the store
	maxDigests = 64 << 20
)

// Header is the first piece.
type Header struct {
	Format   string    `json:"format"`
	Version  int       `json:"version"`
	Created  time.Time `json:"created"`
	Bootd    string    `json:"bootd"` // version of the program
	Epoch    int64     `json:"epoch"`
	Revision int64     `json:"revision"` // of the store, for all of its records
	// Endpoints are those of the external etcd from which the records are; none for bootd's own.
	Endpoints []string `json:"endpoints,omitempty"`
	Blobs     bool     `json:"blobs"` // whether they are in it
}

// Record is one key of the store.
type Record struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
	// TTL says that the key had an etcd lease, as a stock flanneld's do.
	TTL bool `json:"ttl,omitzero"`
}

// Digest is the entry of one piece in digests.json.
type Digest struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

type digests struct {
	Pieces []Digest `json:"pieces"`
}

// Writer writes the archive, which is a backup only once Close has returned nil.
type Writer struct {
	tar  *tar.Writer
	list digests
	sum  hash.Hash
	made time.Time
}

// NewWriter writes the header.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	h.Format, h.Version = formatName, Version
	b := &Writer{tar: tar.NewWriter(w), sum: sha256.New(), made: h.Created}
	raw, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode the backup's header: %w", err)
	}
	return b, b.Piece(headerPiece, int64(len(raw)), bytes.NewReader(raw))
}

// Piece adds a piece, whose size must be known.
func (b *Writer) Piece(name string, size int64, r io.Reader) error {
	if err := b.begin(name, size); err != nil {
		return err
	}
	b.sum.Reset()
	n, err := io.Copy(io.MultiWriter(b.tar, b.sum), io.LimitReader(r, size))
	if err == nil && n != size {
		err = fmt.Errorf("it has %d bytes, want %d", n, size)
	}
	if err != nil {
		return fmt.Errorf("write piece %s: %w", name, err)
	}
	b.list.Pieces = append(b.list.Pieces, Digest{Name: name, Size: size, SHA256: hex.EncodeToString(b.sum.Sum(nil))})
	return nil
}

func (b *Writer) begin(name string, size int64) error {
	h := &tar.Header{Name: name, Size: size, Mode: 0o600, Typeflag: tar.TypeReg, ModTime: b.made.Truncate(time.Second), Format: tar.FormatPAX}
	if err := b.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("begin piece %s: %w", name, err)
	}
	return nil
}

// Close writes the digests and ends the archive.
func (b *Writer) Close() error {
	raw, err := json.Marshal(b.list)
	if err != nil {
		return fmt.Errorf("encode the digests: %w", err)
	}
	if err := b.begin(digestsPiece, int64(len(raw))); err != nil {
		return err
	}
	if _, err := b.tar.Write(raw); err != nil {
		return fmt.Errorf("write the digests: %w", err)
	}
	if err := b.tar.Close(); err != nil {
		return fmt.Errorf("end the backup: %w", err)
	}
	return nil
}

// ErrDamaged is wrapped by every error about the content of a backup.
var ErrDamaged = errors.New("the backup is damaged or truncated")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// Piece is a piece of the archive, as found by Read.
type Piece struct {
	Name string
	Size int64
	io.Reader
}

// Read reads an archive to its end and passes each piece to visit, which may leave any of it unread. Only when
// Read returns nil is everything as the writer wrote it: until then nothing passed to visit may be trusted.
func Read(r io.Reader, visit func(Header, Piece) error) (Header, error) {
	t := tar.NewReader(r)
	var head Header
	var seen []Digest
	for {
		entry, err := t.Next()
		if errors.Is(err, io.EOF) {
			return head, damaged("it ends before its digests")
		}
		if err != nil {
			return head, damaged("after %d pieces: %s", len(seen), err)
		}
		if err := check(entry, len(seen)); err != nil {
			return head, err
		}
		if entry.Name == digestsPiece {
			if err := compare(t, seen); err != nil {
				return head, err
			}
			return head, finish(t, r)
		}
		sum := sha256.New()
		content := io.TeeReader(t, sum)
		if entry.Name == headerPiece {
			head, err = readHeader(content)
		} else {
			err = visit(head, Piece{Name: entry.Name, Size: entry.Size, Reader: content})
		}
		if err != nil {
			return head, fmt.Errorf("piece %s: %w", entry.Name, err)
		}
		if _, err := io.Copy(io.Discard, content); err != nil {
			return head, damaged("in the middle of %s: %s", entry.Name, err)
		}
		seen = append(seen, Digest{Name: entry.Name, Size: entry.Size, SHA256: hex.EncodeToString(sum.Sum(nil))})
	}
}

// check refuses an entry that no Writer creates: a name is never used as a path unless it is one of the known
// ones.
func check(e *tar.Header, before int) error {
	limit := int64(-1)
	switch {
	case before == 0 && e.Name != headerPiece:
		return damaged("it begins with %.80q, want its header", e.Name)
	case e.Typeflag != tar.TypeReg:
		return damaged("%.80q is not a regular file", e.Name)
	case e.Name == headerPiece && before == 0:
		limit = maxHeader
	case e.Name == digestsPiece:
		limit = maxDigests
	case e.Name == SealKey, e.Name == CACert, e.Name == CAKey:
		limit = maxSmall
	case IsRecords(e.Name):
		limit = maxChunk
	case IsBlob(e.Name):
	default:
		return damaged("no piece is called %.80q in version %d of the format", e.Name, Version)
	}
	if e.Size < 0 || limit >= 0 && e.Size > limit {
		return damaged("%s has %d bytes, and %d are the most", e.Name, e.Size, limit)
	}
	return nil
}

// IsRecords reports whether a piece has records of the store.
func IsRecords(name string) bool { return chunkName().MatchString(name) }

// IsBlob reports whether a piece is a blob.
func IsBlob(name string) bool { return blobName().MatchString(name) }

func chunkName() *regexp.Regexp { return regexp.MustCompile(`^store/[0-9]{6}$`) }
func blobName() *regexp.Regexp  { return regexp.MustCompile(`^blobs/sha256/[0-9a-f]{64}$`) }

func readHeader(r io.Reader) (Header, error) {
	var h Header
	raw, err := io.ReadAll(r)
	if err != nil {
		return h, damaged("its header: %s", err)
	}
	if err := json.Unmarshal(raw, &h); err != nil || h.Format != formatName {
		return h, damaged("its header is not that of a rackweft backup")
	}
	if h.Version < 1 || h.Version > Version {
		return h, fmt.Errorf("the backup has version %d of the format, and this bootd reads up to %d: restore it with the bootd that made it (%.40s) or a later one", h.Version, Version, h.Bootd)
	}
	return h, nil
}

// compare reads digests.json and holds it against what was read.
func compare(r io.Reader, seen []Digest) error {
	var want digests
	raw, err := io.ReadAll(r)
	if err != nil {
		return damaged("its digests: %s", err)
	}
	if err := json.Unmarshal(raw, &want); err != nil {
		return damaged("its digests cannot be read: %s", err)
	}
	if len(want.Pieces) != len(seen) {
		return damaged("it has %d pieces, and its digests name %d", len(seen), len(want.Pieces))
	}
	for i, d := range want.Pieces {
		if d != seen[i] {
			return damaged("piece %s is not what was written", seen[i].Name)
		}
	}
	return nil
}

// finish reads the archive's end, and what is behind it: an encrypted stream
// proves only there that nothing was cut off.
func finish(t *tar.Reader, r io.Reader) error {
	switch _, err := t.Next(); {
	case err == nil:
		return damaged("it continues after its digests")
	case !errors.Is(err, io.EOF):
		return damaged("behind its digests: %s", err)
	}
	if n, err := io.Copy(io.Discard, r); err != nil || n > 0 {
		return damaged("behind its end: %d bytes, %v", n, err)
	}
	return nil
}
