package ignition

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"

	"github.com/coreos/ignition/v2/config/v3_6/types"
)

// System is content that rackweft adds to a Machine. It is merged last,
// replaces what layers say about the same files and units, and needs nothing
// newer than Ignition 3.1.
type System struct {
	Files  []File
	Remote []RemoteFile
	Units  []Unit
	Users  []User
	// CAs are PEM certificates by which Ignition trusts the servers of Remote
	// files, in addition to the image's own. Ignition drops those of a pointer
	// config when it has fetched the config.
	CAs [][]byte
}

// File is written as is and owned by root.
type File struct {
	Path     string
	Mode     int // permission bits; 0 means 0644
	Contents []byte
}

// RemoteFile is fetched by the Machine while Ignition runs.
type RemoteFile struct {
	Path   string
	Mode   int // permission bits; 0 means 0644
	URL    string
	SHA256 string // hex digest of the content
	Token  string // sent as `Authorization: Bearer`, over https only; may be empty
}

// Unit is a systemd unit.
type Unit struct {
	Name     string
	Contents string // may be empty when the image has the unit
	Enabled  bool
	Dropins  []Dropin
}

// Dropin changes a unit.
type Dropin struct {
	Name     string // ends in .conf
	Contents string
}

// User is created, or changed if the image has it. SSH keys and groups are
// added to those from layers.
type User struct {
	Name    string
	SSHKeys []string
	Groups  []string
}

func (s System) config() (types.Config, error) {
	var config types.Config
	var errs []error
	for _, f := range s.Files {
		source, err := dataURL(f.Contents)
		errs = append(errs, err)
		config.Storage.Files = append(config.Storage.Files, ownFile(f.Path, f.Mode, types.Resource{Source: &source}))
	}
	for _, r := range s.Remote {
		resource, err := r.resource()
		errs = append(errs, err)
		config.Storage.Files = append(config.Storage.Files, ownFile(r.Path, r.Mode, resource))
	}
	for _, u := range s.Units {
		config.Systemd.Units = append(config.Systemd.Units, u.config())
	}
	for _, u := range s.Users {
		config.Passwd.Users = append(config.Passwd.Users, u.config())
	}
	cas, err := certificateAuthorities(s.CAs)
	errs = append(errs, err)
	config.Ignition.Security.TLS.CertificateAuthorities = cas
	if err := errors.Join(errs...); err != nil {
		return types.Config{}, fmt.Errorf("rackweft's own content: %w", err)
	}
	return config, nil
}

// ownFile makes the file rackweft's, whatever the image has at that path.
func ownFile(path string, mode int, contents types.Resource) types.File {
	if mode == 0 {
		mode = 0o644
	}
	overwrite := true
	return types.File{
		Node:          types.Node{Path: path, Overwrite: &overwrite},
		FileEmbedded1: types.FileEmbedded1{Mode: &mode, Contents: contents},
	}
}

func (r RemoteFile) resource() (types.Resource, error) {
	source, err := url.Parse(r.URL)
	if err != nil || source.Host == "" || (source.Scheme != "http" && source.Scheme != "https") {
		return types.Resource{}, fmt.Errorf("remote file %s: its URL is not an http or https URL", r.Path)
	}
	if sum, err := hex.DecodeString(r.SHA256); err != nil || len(sum) != 32 {
		return types.Resource{}, fmt.Errorf("remote file %s: %q is not a SHA-256 digest in hex", r.Path, r.SHA256)
	}
	hash := "sha256-" + r.SHA256
	resource := types.Resource{Source: &r.URL, Verification: types.Verification{Hash: &hash}}
	if r.Token == "" {
		return resource, nil
	}
	if source.Scheme != "https" {
		return types.Resource{}, fmt.Errorf("remote file %s: a token is only sent over https", r.Path)
	}
	resource.HTTPHeaders, err = bearer(r.Token)
	if err != nil {
		return types.Resource{}, fmt.Errorf("remote file %s: %w", r.Path, err)
	}
	return resource, nil
}

func (u Unit) config() types.Unit {
	unmasked := false
	unit := types.Unit{Name: u.Name, Enabled: &u.Enabled, Mask: &unmasked}
	if u.Contents != "" {
		unit.Contents = &u.Contents
	}
	for _, d := range u.Dropins {
		unit.Dropins = append(unit.Dropins, types.Dropin{Name: d.Name, Contents: &d.Contents})
	}
	return unit
}

func (u User) config() types.PasswdUser {
	user := types.PasswdUser{Name: u.Name}
	for _, key := range u.SSHKeys {
		user.SSHAuthorizedKeys = append(user.SSHAuthorizedKeys, types.SSHAuthorizedKey(key))
	}
	for _, group := range u.Groups {
		user.Groups = append(user.Groups, types.Group(group))
	}
	return user
}

// certificateAuthorities gives each certificate an entry of its own, because
// old Ignitions read only the first of a bundle.
func certificateAuthorities(bundles [][]byte) ([]types.Resource, error) {
	var cas []types.Resource
	for _, rest := range bundles {
		found := false
		for {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if block.Type != "CERTIFICATE" {
				return nil, fmt.Errorf("the CA's PEM holds a %s: give certificates only", block.Type)
			}
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				return nil, fmt.Errorf("the CA's certificate: %w", err)
			}
			source, err := dataURL(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
			if err != nil {
				return nil, err
			}
			cas, found = append(cas, types.Resource{Source: &source}), true
		}
		if !found {
			return nil, errors.New("the CA is not a PEM certificate")
		}
	}
	return cas, nil
}

// bearer returns the header of RFC 6750 §2.1. Its error does not show the
// token.
func bearer(token string) (types.HTTPHeaders, error) {
	if !regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`).MatchString(token) {
		return nil, errors.New("the token is empty or has characters that a bearer token may not have (RFC 6750)")
	}
	value := "Bearer " + token
	return types.HTTPHeaders{{Name: "Authorization", Value: &value}}, nil
}

const unitDir = "/etc/systemd/system/"

// yieldTo removes from layers what own sets, so that nothing of a layer's file
// (compression, hash, appended content) is merged into rackweft's, and returns
// warnings. A layer's drop-ins for rackweft's units stay: with them an owner
// adjusts the units.
func yieldTo(own types.Config, layers []part) []string {
	claimed := map[string]bool{}
	for _, f := range own.Storage.Files {
		claimed[f.Path] = true
	}
	for _, u := range own.Systemd.Units {
		claimed[unitDir+u.Name] = true
		for _, d := range u.Dropins {
			claimed[path.Join(unitDir, u.Name+".d", d.Name)] = true
		}
	}

	var warnings []string
	yields := func(layer, kind, name, path string) bool {
		if claimed[path] {
			warnings = append(warnings, fmt.Sprintf("layer %q sets %s %s, which is rackweft's own: the layer's is ignored", layer, kind, name))
		}
		return claimed[path]
	}
	for i := range layers {
		layer, storage, systemd := layers[i].layer, &layers[i].config.Storage, &layers[i].config.Systemd
		storage.Files = slices.DeleteFunc(storage.Files, func(f types.File) bool { return yields(layer, "file", f.Path, f.Path) })
		storage.Directories = slices.DeleteFunc(storage.Directories, func(d types.Directory) bool { return yields(layer, "directory", d.Path, d.Path) })
		storage.Links = slices.DeleteFunc(storage.Links, func(l types.Link) bool { return yields(layer, "link", l.Path, l.Path) })
		for j := range systemd.Units {
			unit := &systemd.Units[j]
			set := unit.Contents != nil || unit.Enabled != nil || unit.Mask != nil
			if set && yields(layer, "unit", unit.Name, unitDir+unit.Name) {
				unit.Contents, unit.Enabled, unit.Mask = nil, nil, nil
			}
			unit.Dropins = slices.DeleteFunc(unit.Dropins, func(d types.Dropin) bool {
				return yields(layer, "dropin", unit.Name+"/"+d.Name, path.Join(unitDir, unit.Name+".d", d.Name))
			})
		}
	}
	return warnings
}
