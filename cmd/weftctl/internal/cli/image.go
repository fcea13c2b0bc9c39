package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/manifest"
)

// imageCommands upload files to bootd.
type imageCommands struct{ *manifests }

func (a *imageCommands) imageCommand() *cobra.Command {
	return group("image", "Work with Images", a.imageImportCommand())
}

type importOptions struct {
	version, os, arch, ignition string
	arguments                   []string
	dryRun                      bool
}

func (a *imageCommands) imageImportCommand() *cobra.Command {
	var o importOptions
	c := &cobra.Command{
		Use:   "import NAME DIRECTORY|FILE…",
		Short: "Upload boot assets and apply the Image made of them",
		Long: `import finds the kernel, initrd, rootfs and disk among the files by their names:

  kernel   vmlinuz*, kernel*, bzImage*, *-kernel-*, *-kernel.*, *.vmlinuz
  initrd   initrd*, initramfs*, *.cpio.gz, *.cpio.xz, *.cpio.zst, *initramfs*.img, *-initrd-*
  rootfs   rootfs*, *.squashfs, *-rootfs-*
  disk     *.raw, *.qcow2, other *.img, also compressed

or by kernel=PATH, initrd=PATH, rootfs=PATH, disk=PATH. Files that bootd already holds are not sent again: an
interrupted import continues with the file at which it stopped.`,
		Example: `  weftctl image import flatcar-stable ./flatcar --version 4230.2.1
  weftctl image import debian-12 kernel=./vmlinuz initrd=./initrd.img rootfs=./root.squashfs --os debian --version 12.8`,
		Args: atLeast(2, "NAME and the DIRECTORY or FILEs"),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			return a.importImage(c.Context(), client, args[0], args[1:], o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.version, "version", "", "the Image's version. Default: derived from the files' digests")
	f.StringVar(&o.os, "os", "", "debian, flatcar or fcos. Default: flatcar")
	f.StringVar(&o.arch, "arch", "", "amd64 or arm64. Default: amd64")
	f.StringVar(&o.ignition, "ignition-version", "", "highest Ignition spec that the image's Ignition reads. Default: 3.4.0")
	f.StringArrayVar(&o.arguments, "kernel-argument", nil, "kernel argument; replaces those that --os implies (repeatable)")
	f.BoolVar(&o.dryRun, "dry-run", false, "have bootd check the objects, but store nothing")
	complete(c, "os", "debian", "flatcar", "fcos")
	complete(c, "arch", "amd64", "arm64")
	return c
}

func (a *imageCommands) importImage(ctx context.Context, client *api.Client, name string, paths []string, o importOptions) error {
	files, err := classify(paths)
	if err != nil {
		return err
	}
	image := &api.Image{Spec: api.ImageSpec{Version: o.version, Arch: o.arch, OS: o.os, IgnitionVersion: o.ignition,
		KernelArguments: o.arguments, Files: map[string]api.ImageFile{}}}
	image.Metadata.Name = name
	for role, path := range files {
		image.Spec.Files[role] = api.ImageFile{Source: path}
	}
	image.SetDefaults()
	document, err := documentOf(image)
	if err != nil {
		return err
	}
	uploads, faults := a.localFiles(ctx, document, image)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if len(faults) > 0 {
		return usageError{errors.New(faults[0].Message)}
	}
	if image.Spec.Version == "" {
		image.Spec.Version = contentVersion(image)
	}
	if err := image.Validate().OrNil(); err != nil {
		return usagef("image %s: %w", name, err)
	}
	in := input{object: image, kind: api.KindOf(image), document: document, uploads: uploads}
	b := a.batch(client, []input{in}, o.dryRun)
	s := b.one(ctx, in)
	if s.err != nil {
		return fmt.Errorf("import image %s: %w", name, s.err)
	}
	return b.print(in, s)
}

// documentOf is an object as the YAML that a person would have written.
func documentOf(o api.Object) (*manifest.Document, error) {
	raw, err := manifest.YAML(o)
	if err != nil {
		return nil, err
	}
	documents, err := manifest.Parse(o.Meta().Name, raw)
	if err != nil {
		return nil, err
	}
	return documents[0], nil
}

// contentVersion derives a version from the Image's files.
func contentVersion(image *api.Image) string {
	for _, role := range []string{api.RootfsFile, api.DiskFile, api.InitrdFile, api.KernelFile} {
		if f, ok := image.Spec.Files[role]; ok {
			return string(f.SHA256[:12])
		}
	}
	return ""
}

// classify finds the role of each file: by role=PATH, or by its name. A directory means its files; those with
// other names are skipped.
func classify(paths []string) (map[string]string, error) {
	files := map[string]string{}
	take := func(role, path string) error {
		if first, twice := files[role]; twice {
			return usagef("both %s and %s look like the %s: say which with %s=PATH", first, path, role, role)
		}
		absolute, err := filepath.Abs(path)
		files[role] = absolute
		return err
	}
	for _, path := range paths {
		if role, given, ok := strings.Cut(path, "="); ok && slices.Contains(fileRoles(), role) {
			if err := take(role, given); err != nil {
				return nil, err
			}
			continue
		}
		if err := classifyPath(path, take); err != nil {
			return nil, err
		}
	}
	if len(files) == 0 {
		return nil, usagef("no kernel, initrd, rootfs or disk among %s: say which is which with kernel=PATH and so on", strings.Join(paths, ", "))
	}
	return files, nil
}

func classifyPath(path string, take func(role, path string) error) error {
	info, err := os.Stat(path)
	if err != nil {
		return usageError{err}
	}
	if !info.IsDir() {
		role := roleOf(filepath.Base(path))
		if role == "" {
			return usagef("the name of %s does not show its role: write kernel=, initrd=, rootfs= or disk= before it", path)
		}
		return take(role, path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		role := roleOf(e.Name())
		if role == "" || e.IsDir() {
			continue
		}
		if err := take(role, filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func fileRoles() []string {
	return []string{api.KernelFile, api.InitrdFile, api.RootfsFile, api.DiskFile}
}

// rolePatterns are the names that distributions use, most specific first: Debian and dracut, Fedora CoreOS
// (fedora-coreos-…-live-kernel-x86_64, -live-initramfs.x86_64.img, -live-rootfs.x86_64.img), Flatcar
// (flatcar_production_pxe.vmlinuz, _pxe_image.cpio.gz, _image.bin.bz2).
func rolePatterns() []struct{ role, patterns string } {
	return []struct{ role, patterns string }{
		{"", "*.sig *.asc *.sha256 *.sha512 *.txt *.json *.DIGESTS"},
		{api.KernelFile, `vmlinuz* vmlinux* bzImage* kernel kernel[.\-_]* *-kernel[.\-]* *-kernel *.vmlinuz`},
		{api.InitrdFile, `initrd* initramfs* *-initramfs[.\-]* *-initrd[.\-]* *.cpio *.cpio.gz *.cpio.xz *.cpio.zst`},
		{api.RootfsFile, `rootfs* *-rootfs[.\-]* *.squashfs *.squash`},
		{api.DiskFile, "*.raw *.raw.* *.qcow2 *.qcow2.* *.img *.img.* *_image.bin *_image.bin.*"},
	}
}

func roleOf(name string) string {
	for _, r := range rolePatterns() {
		for _, pattern := range strings.Fields(r.patterns) {
			if ok, _ := filepath.Match(pattern, name); ok {
				return r.role
			}
		}
	}
	return ""
}

// imageFiles are the roles of an Image's files in order.
func imageFiles(i *api.Image) []string { return slices.Sorted(maps.Keys(i.Spec.Files)) }
