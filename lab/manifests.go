package lab

import (
	"bufio"
	"bytes"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// The objects of the rack, as a person would write them.
//
//go:embed manifests/*.yaml
var manifestFiles embed.FS

// ImageName is the Image that the manifests boot.
const ImageName = "debian-12-lab"

// manifestOrder lists objects before those that refer to them.
func manifestOrder() []string {
	return []string{"site.yaml", "zone.yaml", "subnets.yaml", "layers.yaml", "profile.yaml", "image.yaml", "secret.yaml", "machines.yaml"}
}

// Manifests returns the paths of the rack's manifests, in the order in which to
// apply them.
func (r *Rack) Manifests() []string {
	var paths []string
	for _, name := range manifestOrder() {
		if name == "image.yaml" && r.config.ImageDir == "" {
			continue
		}
		paths = append(paths, filepath.Join(r.config.Dir, "manifests", name))
	}
	return paths
}

type manifestData struct {
	Domain, DiskSerial, Username, Password string
	Image                                  imageData
	Machines                               []machineData
}

type imageData struct {
	Name, Version          string
	Kernel, Initrd, Rootfs imageFile
}

type imageFile struct{ Path, SHA256 string }

type machineData struct {
	MachineConfig
	Fingerprint string
}

// writeManifests renders the manifests into Dir/manifests. They contain the BMC
// password, so their mode is 0600.
func (r *Rack) writeManifests() error {
	data := manifestData{Domain: r.config.Name + ".example", DiskSerial: DiskSerial, Username: BMCUser, Password: r.password,
		Image: imageData{Name: ImageName}}
	for _, m := range r.machines {
		data.Machines = append(data.Machines, machineData{m.config, m.bmc.Fingerprint()})
	}
	if r.config.ImageDir != "" {
		var err error
		if data.Image, err = readImage(r.config.ImageDir); err != nil {
			return fmt.Errorf("image: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Join(r.config.Dir, "manifests"), 0o700); err != nil {
		return err
	}
	templates, err := template.ParseFS(manifestFiles, "manifests/*.yaml")
	if err != nil {
		return err
	}
	for _, path := range r.Manifests() {
		var out bytes.Buffer
		if err := templates.ExecuteTemplate(&out, filepath.Base(path), data); err != nil {
			return err
		}
		if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// readImage reads the digests of an image's files from its SHA256SUMS.
func readImage(dir string) (imageData, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return imageData{}, err
	}
	f, err := os.Open(filepath.Join(dir, "SHA256SUMS"))
	if err != nil {
		return imageData{}, err
	}
	defer func() { _ = f.Close() }()
	sums, err := parseSums(f)
	if err != nil {
		return imageData{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	image := imageData{Name: ImageName}
	for _, one := range []struct {
		name string
		file *imageFile
	}{{"vmlinuz", &image.Kernel}, {"initrd", &image.Initrd}, {"rootfs.squashfs", &image.Rootfs}} {
		sum, ok := sums[one.name]
		if !ok {
			return imageData{}, fmt.Errorf("%s has no line for %s", f.Name(), one.name)
		}
		*one.file = imageFile{Path: filepath.Join(dir, one.name), SHA256: sum}
	}
	image.Version = image.Rootfs.SHA256[:12] // the version of an image is derived from its content
	return image, nil
}

// parseSums parses the output of sha256sum(1): a digest, a space, a space or a
// star, a name.
func parseSums(r io.Reader) (map[string]string, error) {
	sums := map[string]string{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		sum, name, ok := strings.Cut(lines.Text(), " ")
		if raw, err := hex.DecodeString(sum); !ok || err != nil || len(raw) != 32 {
			return nil, errors.New("a line is not of sha256sum's form")
		}
		sums[strings.TrimPrefix(strings.TrimLeft(name, " *"), "./")] = strings.ToLower(sum)
	}
	return sums, lines.Err()
}
