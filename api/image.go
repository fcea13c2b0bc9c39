package api

import (
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/rackweft/rackweft/internal/text"
)

// Image is a named, versioned set of boot assets. The bytes are blobs, found by
// digest.
type Image struct {
	Base
	Spec   ImageSpec   `json:"spec" doc:"The desired state, written by people."`
	Status ImageStatus `json:"status,omitzero" doc:"The observed state, written by rackweft."`
}

// imageKind describes the kind.
func imageKind() Kind {
	return Kind{Name: "Image", Doc: "A kernel, initrd and root file system that Machines boot, or a disk that Guests have, by version.",
		Plural: "images", Short: []string{"img"}, Writer: RoleOperator,
		Columns: imageColumns, New: func() Object { return new(Image) }, is: is[*Image],
		Conditions: func(o Object) *Conditions { return &o.(*Image).Status.Conditions }}
}

func imageColumns() []Column {
	return []Column{
		of("VERSION", func(i *Image) string { return i.Spec.Version }),
		of("OS", func(i *Image) string { return i.Spec.OS }),
		of("ARCH", func(i *Image) string { return i.Spec.Arch }),
		of("FILES", func(i *Image) string { return strings.Join(slices.Sorted(maps.Keys(i.Spec.Files)), ",") }),
		of("SIZE", func(i *Image) string {
			var sum int64
			for _, f := range i.Status.Files {
				sum += f.Size
			}
			if sum == 0 {
				return ""
			}
			return text.Size(sum)
		}),
		ReadyColumn(),
		wide(of("IGNITION", func(i *Image) string { return i.Spec.IgnitionVersion })),
	}
}

// The files of an Image.
const (
	KernelFile = "kernel"
	InitrdFile = "initrd"
	RootfsFile = "rootfs"
	DiskFile   = "disk"
)

// CloudInit is the alternative to Ignition for the configuration of an Image.
const CloudInit = "cloud-init"

// ImageSpec is the desired Image.
type ImageSpec struct {
	Version         string `json:"version" doc:"Version for people to tell Images apart."`
	Arch            string `json:"arch,omitzero" enum:"amd64,arm64" doc:"Processor architecture. Default: amd64."`
	OS              string `json:"os,omitzero" doc:"debian, flatcar or fcos: decides the kernel arguments that name the root and the Ignition config. Default: flatcar."`
	IgnitionVersion string `json:"ignitionVersion,omitzero" doc:"Highest Ignition spec that the image's Ignition reads, 3.1.0 to 3.6.0. Default: 3.4.0."`
	ConfiguredBy    string `json:"configuredBy,omitzero" enum:"ignition,cloud-init" doc:"What configures a Guest that has this Image; Machines are configured by Ignition alone. Default: ignition."`
	// KernelArguments replace the default ones of OS. Each may contain
	// ${rootfs_url}, ${rootfs_sha256}, ${ignition_url} and ${mac}.
	KernelArguments []string             `json:"kernelArguments,omitempty" doc:"Kernel arguments; may contain ${rootfs_url}, ${rootfs_sha256}, ${ignition_url}, ${mac}. Default: those of os."`
	Files           map[string]ImageFile `json:"files" doc:"kernel, initrd, rootfs, disk."`
}

// ImageFile is one asset.
type ImageFile struct {
	Source string `json:"source,omitzero" doc:"Where it comes from: a file that weftctl uploads, or an http(s) URL that bootd fetches. Default: bytes that bootd holds already, by sha256."`
	SHA256 SHA256 `json:"sha256,omitzero" doc:"Digest that the file must have. Default: that of the file that weftctl uploads."`
}

// ImageStatus is observed by rackweft.
type ImageStatus struct {
	Files      map[string]ImageFileStatus `json:"files,omitempty" doc:"Files that bootd holds, by name."`
	Conditions Conditions                 `json:"conditions,omitempty" doc:"Ready: every file is held and matches its digest."`
}

// ImageFileStatus is one file as stored by bootd.
type ImageFileStatus struct {
	SHA256 SHA256 `json:"sha256" doc:"Digest of the file."`
	Size   int64  `json:"size" doc:"Bytes."`
}

// SetDefaults implements Object.
func (i *Image) SetDefaults() {
	i.defaultType("Image")
	if i.Spec.Arch == "" {
		i.Spec.Arch = "amd64"
	}
	if i.Spec.OS == "" {
		i.Spec.OS = "flatcar"
	}
	if i.Spec.IgnitionVersion == "" {
		i.Spec.IgnitionVersion = "3.4.0"
	}
}

// Validate implements Object.
func (i *Image) Validate() FieldErrors {
	e := i.common("Image")
	if i.Spec.Version == "" {
		e.add(at("spec", "version"), "a version is required")
	}
	e.oneOf(at("spec", "arch"), i.Spec.Arch, "amd64", "arm64")
	e.oneOf(at("spec", "os"), i.Spec.OS, "debian", "flatcar", "fcos")
	if !regexp.MustCompile(`^3\.[1-6]\.0$`).MatchString(i.Spec.IgnitionVersion) {
		e.add(at("spec", "ignitionVersion"), "%q is not one of 3.1.0 to 3.6.0", i.Spec.IgnitionVersion)
	}
	if i.Spec.ConfiguredBy != "" {
		e.oneOf(at("spec", "configuredBy"), i.Spec.ConfiguredBy, "ignition", CloudInit)
	}
	if _, ok := i.Spec.Files[KernelFile]; !ok && i.Spec.Files[DiskFile] == (ImageFile{}) {
		e.add(at("spec", "files"), "an Image has a kernel or a disk")
	}
	for name, f := range i.Spec.Files {
		i.validateFile(&e, name, f)
	}
	return e
}

func (i *Image) validateFile(e *FieldErrors, name string, f ImageFile) {
	here := at("spec", "files", name)
	if !slices.Contains([]string{KernelFile, InitrdFile, RootfsFile, DiskFile}, name) {
		e.add(here, "invalid file %q: want kernel, initrd, rootfs or disk", name)
	}
	if f.SHA256 == "" {
		e.add(append(here, "sha256"), "a digest is required: sha256sum prints it, and \"weftctl image import\" fills it in")
	}
	if u, err := url.Parse(f.Source); f.Source != "" && (err != nil || strings.ContainsAny(f.Source, "\n\r")) {
		e.add(append(here, "source"), "invalid source %q: want a path or a URL", f.Source)
	} else if err == nil && u.User != nil {
		e.add(append(here, "source"), "a URL must not contain a password, because it is shown: serve the file without one; its digest protects it")
	}
}

// Layer is one Butane document, a template that uses a Machine's facts.
type Layer struct {
	Base
	Spec   LayerSpec   `json:"spec" doc:"The desired state, written by people."`
	Status LayerStatus `json:"status,omitzero" doc:"The observed state, written by rackweft."`
}

// layerKind describes the kind.
func layerKind() Kind {
	return Kind{Name: "Layer", Doc: "A piece of Butane configuration; Profiles and Guests list Layers by name.",
		Plural: "layers", Writer: RoleOperator,
		Columns: layerColumns, New: func() Object { return new(Layer) }, is: is[*Layer],
		Conditions: func(o Object) *Conditions { return &o.(*Layer).Status.Conditions }}
}

func layerColumns() []Column {
	return []Column{of("LINES", func(l *Layer) string { return strconv.Itoa(strings.Count(l.Spec.Butane, "\n")) }), ReadyColumn()}
}

// LayerSpec is the desired Layer.
type LayerSpec struct {
	Butane string `json:"butane" doc:"Butane YAML; variant and version may be left out. A Go template over the Machine's facts."`
}

// LayerStatus is observed by rackweft.
type LayerStatus struct {
	Conditions Conditions `json:"conditions,omitempty" doc:"Observed facts, one of each type."`
}

// SetDefaults implements Object.
func (l *Layer) SetDefaults() { l.defaultType("Layer") }

// Validate implements Object.
func (l *Layer) Validate() FieldErrors {
	e := l.common("Layer")
	if strings.TrimSpace(l.Spec.Butane) == "" {
		e.add(at("spec", "butane"), "a Layer without a document does nothing")
	}
	if len(l.Spec.Butane) > 1<<19 {
		e.add(at("spec", "butane"), "%d bytes are more than 512 KiB", len(l.Spec.Butane))
	}
	return e
}

// Profile says what a Machine boots.
type Profile struct {
	Base
	Spec   ProfileSpec   `json:"spec" doc:"The desired state, written by people."`
	Status ProfileStatus `json:"status,omitzero" doc:"The observed state, written by rackweft."`
}

// profileKind describes the kind.
func profileKind() Kind {
	return Kind{Name: "Profile", Doc: "What Machines boot: an Image, Layers and variables.",
		Plural: "profiles", Short: []string{"prof"}, Writer: RoleOperator,
		Columns: profileColumns, New: func() Object { return new(Profile) }, is: is[*Profile],
		Conditions: func(o Object) *Conditions { return &o.(*Profile).Status.Conditions },
		References: func(o Object) []Reference { return o.(*Profile).references() }}
}

func profileColumns() []Column {
	return []Column{
		of("IMAGE", func(x *Profile) string { return x.Spec.Image }),
		of("LAYERS", func(x *Profile) string { return strings.Join(x.Spec.Layers, ",") }),
		of("BOOTS", func(x *Profile) string {
			if x.Spec.Install == nil {
				return "live"
			}
			return "from disk"
		}),
		wide(of("ARGUMENTS", func(x *Profile) string { return strings.Join(x.Spec.KernelArguments, " ") })),
	}
}

func (p *Profile) references() (l references) {
	l.add("Image", p.Spec.Image, "spec", "image")
	for i, name := range p.Spec.Layers {
		l.add("Layer", name, "spec", "layers", i)
	}
	return l
}

// maxLayers bounds the Layers of one config.
const maxLayers = 64

// ProfileSpec is the desired Profile.
type ProfileSpec struct {
	Image           string            `json:"image" doc:"Image that its Machines boot."`
	KernelArguments []string          `json:"kernelArguments,omitempty" doc:"Kernel arguments added to the Image's. Default: none."`
	Layers          []string          `json:"layers,omitempty" doc:"Layers by name, merged in this order. Default: none."`
	Variables       map[string]string `json:"variables,omitempty" doc:"What templates see as .Variables. Default: none."`
	Trust           Trust             `json:"trust,omitzero" doc:"What a boot of its Machines must prove."`
	Install         *Install          `json:"install,omitempty" doc:"Writes the Image to a disk before the boot. Not supported yet. Default: none, the Machine boots live."`
}

// Install says where the image's disk is written.
type Install struct {
	Disk string `json:"disk" doc:"A stable path, such as /dev/disk/by-id/…"`
	Wipe bool   `json:"wipe,omitzero" doc:"Writes even over a disk that holds a foreign file system. Default: false."`
}

// ProfileStatus is observed by rackweft.
type ProfileStatus struct {
	Conditions Conditions `json:"conditions,omitempty" doc:"Observed facts, one of each type."`
}

// SetDefaults implements Object.
func (p *Profile) SetDefaults() { p.defaultType("Profile") }

// Validate implements Object.
func (p *Profile) Validate() FieldErrors {
	e := p.common("Profile")
	e.trust(p.Spec.Trust.Minimum)
	e.name(at("spec", "image"), p.Spec.Image)
	if n := len(p.Spec.Layers); n > maxLayers {
		e.add(at("spec", "layers"), "%d are listed, %d at most", n, maxLayers)
	}
	for i, l := range p.Spec.Layers {
		e.name(at("spec", "layers", i), l)
		if slices.Contains(p.Spec.Layers[:i], l) {
			e.add(at("spec", "layers", i), "Layer %q is listed twice", l)
		}
	}
	for i, a := range p.Spec.KernelArguments {
		if a == "" || strings.ContainsAny(a, "\n\r\t") {
			e.add(at("spec", "kernelArguments", i), "invalid kernel argument %q", a)
		}
	}
	if p.Spec.Install != nil && !strings.HasPrefix(p.Spec.Install.Disk, "/dev/") {
		e.add(at("spec", "install", "disk"), "invalid disk %q: want a stable path, such as /dev/disk/by-id/…", p.Spec.Install.Disk)
	}
	return e
}
