package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/boot"
	"github.com/rackweft/rackweft/bootd/media"
)

// ImageLoaders are the boot loaders of images for virtual CD drives: GRUB, for any of the architectures, by the path at which
// UEFI looks for it (UEFI 2.10 §3.5.1.1).
func ImageLoaders() map[string]string {
	return map[string]string{"EFI/BOOT/BOOTX64.EFI": "grubx64.efi", "EFI/BOOT/BOOTAA64.EFI": "grubaa64.efi"}
}

// image answers a BMC that presents the URL of a BootAttempt's image. Some read it in thousands of small ranges.
func (h *boots) image(c *call) error {
	if c.r.PathValue("file") != boot.MediumFile {
		return problem(http.StatusNotFound, "want %s", boot.MediumFile)
	}
	c.who.from = peerOf(c.r).String()
	if !h.ranges.allow(peerOf(c.r)) {
		c.w.Header().Set("Retry-After", "2")
		return problem(http.StatusServiceUnavailable, "too many calls from %s: wait a moment", c.who.from)
	}
	medium, err := h.decider.Medium(c.r.Context(), c.name(), c.r.PathValue("key"), peerOf(c.r))
	if err != nil {
		return h.unknownCaller(c, err)
	}
	image, err := h.openImage(medium)
	if err != nil {
		return h.unknownCaller(c, err)
	}
	defer func() { _ = image.Close() }()
	c.w.Header().Set("Content-Type", "application/x-iso9660-image")
	c.w.Header().Set("Cache-Control", "no-store")
	c.status = http.StatusOK
	http.ServeContent(patientWriter{c.w, c}, c.r, "", time.Time{}, io.NewSectionReader(image, 0, image.Size()))
	return nil
}

// openImage is an image with its files open.
type openImage struct {
	*media.Image
	files []io.Closer
}

func (i openImage) Close() error {
	var err error
	for _, f := range i.files {
		err = errors.Join(err, f.Close())
	}
	return err
}

func (h *boots) openImage(m boot.Medium) (i openImage, err error) {
	var files []media.File
	defer func() {
		if err != nil {
			err = errors.Join(err, i.Close())
		}
	}()
	for path, name := range ImageLoaders() {
		f, size, err := openLoader(h.loaders, name)
		if err != nil {
			continue // of another architecture
		}
		i.files = append(i.files, f)
		content, ok := f.(io.ReaderAt)
		if !ok {
			return i, fmt.Errorf("the boot loader %s cannot be read in parts", name)
		}
		files = append(files, media.File{Path: path, Size: size, Content: content})
	}
	if len(files) == 0 {
		return i, fmt.Errorf("no boot loader for images: %w", fs.ErrNotExist)
	}
	for path, digest := range map[string]api.SHA256{boot.MediumKernel: m.Kernel, boot.MediumInitrd: m.Initrd} {
		if digest == "" {
			continue
		}
		f, info, err := h.blobs.blobs.Get(blob.Digest("sha256:" + string(digest)))
		if err != nil {
			return i, err
		}
		i.files = append(i.files, f)
		files = append(files, media.File{Path: path, Size: info.Size, Content: f})
	}
	text := map[string][]byte{boot.MediumAuthority: m.Authority}
	for _, prefix := range []string{"BOOT/GRUB", "EFI/DEBIAN", "EFI/BOOT"} { // GRUB looks where its packager has said, or beside itself
		text[prefix+"/GRUB.CFG"] = m.Config
	}
	for path, content := range text {
		files = append(files, media.File{Path: path, Size: int64(len(content)), Content: bytes.NewReader(content)})
	}
	// The order decides where they are, and a BMC reads it in many requests.
	slices.SortFunc(files, func(a, b media.File) int { return strings.Compare(a.Path, b.Path) })
	i.Image, err = media.New(files)
	return i, err
}
