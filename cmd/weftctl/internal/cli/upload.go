package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/manifest"
)

// upload is a file of an Image that bootd may lack.
type upload struct {
	name   string // kernel, initrd, rootfs, disk
	path   string
	digest api.SHA256
	size   int64
	absent bool // the file is not on this machine; bootd must already hold it
}

// localFiles finds the files of an Image that its YAML names by path, checks their digests, and fills in missing
// digests.
func (a *manifests) localFiles(ctx context.Context, d *manifest.Document, image *api.Image) ([]upload, manifest.Faults) {
	var uploads []upload
	var faults manifest.Faults
	for _, name := range slices.Sorted(maps.Keys(image.Spec.Files)) {
		file := image.Spec.Files[name]
		if file.Source == "" || strings.HasPrefix(file.Source, "http://") || strings.HasPrefix(file.Source, "https://") {
			continue
		}
		u := upload{name: name, path: strings.TrimPrefix(file.Source, "file://"), digest: file.SHA256}
		if !filepath.IsAbs(u.path) {
			u.path = filepath.Join(d.Dir, u.path)
		}
		sum, size, err := a.digest(ctx, name, u.path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && u.digest != "":
			u.absent = true
		case err != nil:
			faults = append(faults, d.Fault(api.FieldError{Pointer: api.Pointer("spec", "files", name, "source"), Message: err.Error()}))
			continue
		case u.digest != "" && u.digest != sum:
			faults = append(faults, d.Fault(api.FieldError{Pointer: api.Pointer("spec", "files", name, "sha256"),
				Message: fmt.Sprintf("%s has another digest: %s", u.path, sum)}))
			continue
		default:
			u.digest, u.size = sum, size
		}
		file.SHA256 = u.digest
		image.Spec.Files[name] = file
		uploads = append(uploads, u)
	}
	return uploads, faults
}

// showFrom is the size from which a file's progress is shown: 64 MiB are read in well under a second.
const showFrom = 64 << 20

// digest reads a whole file.
func (a *manifests) digest(ctx context.Context, name, path string) (api.SHA256, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	if !info.Mode().IsRegular() {
		return "", 0, fmt.Errorf("%s is not a file", path)
	}
	var in io.Reader = untilDone{ctx, f}
	if info.Size() >= showFrom && a.err.Live() {
		p := a.err.Progress("check", name, info.Size())
		in = p.Reader(in)
		defer p.Abandon()
	}
	sum := sha256.New()
	size, err := io.Copy(sum, in)
	if err != nil {
		return "", 0, fmt.Errorf("read %s: %w", path, err)
	}
	return api.SHA256(hex.EncodeToString(sum.Sum(nil))), size, nil
}

// untilDone ends a long read when ctx does.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(b []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(b)
}

// missingBlobs finds files that are neither on this machine nor at bootd.
func missingBlobs(ctx context.Context, client *api.Client, inputs []input) error {
	var faults manifest.Faults
	for _, in := range inputs {
		for _, u := range in.uploads {
			if !u.absent {
				continue
			}
			held, err := client.HasBlob(ctx, u.digest)
			if err != nil {
				return fmt.Errorf("ask for %s of %s: %w", u.name, in.title(), err)
			}
			if !held {
				faults = append(faults, in.document.Fault(api.FieldError{Pointer: api.Pointer("spec", "files", u.name, "source"),
					Message: fmt.Sprintf("%s does not exist, and bootd does not hold its digest either", u.path)}))
			}
		}
	}
	if len(faults) > 0 {
		return faults
	}
	return nil
}

// upload sends the blobs that bootd lacks. A file that arrived complete is never sent again, so an interrupted
// upload of several files continues with the one that was interrupted.
func (a *manifests) upload(ctx context.Context, client *api.Client, uploads []upload) error {
	for _, u := range uploads {
		held, err := client.HasBlob(ctx, u.digest)
		if err != nil {
			return fmt.Errorf("ask for %s: %w", u.name, err)
		}
		if held {
			continue
		}
		if err := a.uploadOne(ctx, client, u); err != nil {
			return fmt.Errorf("upload %s (%s): %w", u.name, u.path, err)
		}
	}
	return nil
}

func (a *manifests) uploadOne(ctx context.Context, client *api.Client, u upload) error {
	f, err := os.Open(u.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	p := a.err.Progress("upload", u.name, u.size)
	if err := client.PutBlob(ctx, u.digest, p.Reader(f)); err != nil {
		p.Abandon()
		return err
	}
	p.Done()
	return nil
}
