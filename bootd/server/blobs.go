package server

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/store"
)

// Blob describes one blob.
type Blob struct {
	Digest string    `json:"digest" doc:"sha256:<64 hexadecimal digits>"`
	Size   int64     `json:"size" doc:"Bytes."`
	Time   time.Time `json:"time,omitzero" doc:"When it was uploaded."`
	Images []string  `json:"images,omitempty" doc:"The Images that name it."`
}

// BlobList lists all blobs, ordered by digest.
type BlobList struct {
	Items []Blob `json:"items"`
}

// syncTime is how long a blob may take to reach the disk once it has been received completely.
const syncTime = 10 * time.Minute

// blobs are read and written by digest.
type blobs struct {
	blobs   *blob.Store
	cache   *store.Cache
	writes  *writes
	streams *streams
}

func (h *blobs) routes() []route {
	const one, octets = "/v1/blobs/{digest}", "application/octet-stream"
	named := func(c *call) bool {
		d, err := blob.ParseDigest(c.r.PathValue("digest"))
		return err == nil && len(h.imagesWith(d)) > 0
	}
	return []route{
		{method: "GET", path: "/v1/blobs", tag: "Blob", role: viewer, summary: "List the blobs", out: BlobList{}, handle: h.list},
		{method: "GET", path: one, tag: "Blob", role: viewer, host: named, stream: true, summary: "Read a blob, or a range of it; HEAD checks whether it exists", outType: octets, handle: h.get},
		{method: "PUT", path: one, tag: "Blob", role: operator, stream: true, audited: true, summary: "Upload a blob; refused (422) when its digest differs", inType: octets, out: Blob{}, status: http.StatusCreated, handle: h.put},
		{method: "DELETE", path: one, tag: "Blob", role: operator, audited: true, summary: "Delete a blob that no Image names", status: http.StatusNoContent, handle: h.delete},
	}
}

func (c *call) digest() (blob.Digest, error) {
	d, err := blob.ParseDigest(c.r.PathValue("digest"))
	if err != nil {
		return "", problem(http.StatusBadRequest, "%s", err)
	}
	return d, nil
}

// imagesWith names the Images that name a blob.
func (h *blobs) imagesWith(d blob.Digest) []string {
	var names []string
	for _, img := range store.CachedList[api.Image](h.cache) {
		for _, f := range img.Spec.Files {
			if string(f.SHA256) == d.Hex() {
				names = append(names, img.Metadata.Name)
				break
			}
		}
	}
	return names
}

func (h *blobs) list(c *call) error {
	infos, err := h.blobs.List()
	if err != nil {
		return err
	}
	l := BlobList{Items: make([]Blob, len(infos))}
	for i, info := range infos {
		l.Items[i] = Blob{Digest: string(info.Digest), Size: info.Size, Time: info.ModTime.UTC(), Images: h.imagesWith(info.Digest)}
	}
	return c.json(http.StatusOK, l)
}

func (h *blobs) get(c *call) error {
	d, err := c.digest()
	if err != nil {
		return err
	}
	f, info, err := h.blobs.Get(d)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	header := c.w.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("ETag", `"`+string(d)+`"`)
	c.status = http.StatusOK
	http.ServeContent(patientWriter{c.w, c}, c.r, "", info.ModTime, f)
	return nil
}

func (h *blobs) put(c *call) error {
	d, err := c.digest()
	if err != nil {
		return err
	}
	_, size, err := h.blobs.Put(c.r.Context(), patientReader{c.r.Body, c}, d)
	if err != nil {
		return err
	}
	c.changed = true
	return c.json(http.StatusCreated, Blob{Digest: string(d), Size: size})
}

func (h *blobs) delete(c *call) error {
	d, err := c.digest()
	if err != nil {
		return err
	}
	// Serialized with writes of Images, so that none comes to name it in the meantime.
	w, err := h.writes.beginAlone(c.r.Context())
	if err != nil {
		return err
	}
	defer w.end()
	if _, err := h.blobs.Stat(d); err != nil && !errors.Is(err, blob.ErrDamaged) {
		return err
	}
	if names := h.imagesWith(d); len(names) > 0 {
		return problem(http.StatusConflict, "blob %s is named by Image %s: delete that first", d, strings.Join(names, ", "))
	}
	if err := h.blobs.Delete(d); err != nil {
		return err
	}
	c.changed = true
	return c.empty(http.StatusNoContent)
}

// patientReader and patientWriter extend the client's deadline whenever it has made progress: a blob may take any
// time, but a transfer must not stall.
type patientReader struct {
	io.Reader
	c *call
}

func (p patientReader) Read(b []byte) (int, error) {
	p.c.extend(bodyTime)
	n, err := p.Reader.Read(b)
	switch {
	case err == io.EOF:
		p.c.extend(syncTime)
	case err != nil:
		err = problem(http.StatusBadRequest, "the upload was interrupted: %s", err)
	}
	return n, err
}

type patientWriter struct {
	http.ResponseWriter
	c *call
}

func (p patientWriter) Write(b []byte) (int, error) {
	p.c.extend(bodyTime)
	n, err := p.ResponseWriter.Write(b)
	if err != nil {
		return n, fmt.Errorf("send a blob: %w", err)
	}
	return n, nil
}
