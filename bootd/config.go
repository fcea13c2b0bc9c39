// Package bootd assembles the boot daemon: its configuration, its parts, and their dependencies.
package bootd

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/image"
)

// Config is /etc/rackweft/bootd.yaml: listeners, store and paths. Everything
// else is an object.
type Config struct {
	// Interfaces that DHCP listens on, in addition to those that provisioning Subnets name.
	Interfaces []string      `json:"interfaces,omitempty"`
	Listen     Listen        `json:"listen,omitzero"`
	Advertise  []string      `json:"advertise,omitempty"` // API URLs for hosts, tried before the address that they boot from
	Store      StoreConfig   `json:"store,omitzero"`
	IPXE       string        `json:"ipxe,omitzero"`      // directory with undionly.kpxe, snponly.efi, …
	Nodeagent  string        `json:"nodeagent,omitzero"` // the binary that hosts install. Default: the one next to bootd's
	Tokens     []TokenConfig `json:"tokens,omitempty"`
	// Images configures from where bootd may fetch the files of Images.
	Images ImagesConfig `json:"images,omitzero"`
	// Reserve is how many bytes of the file system blobs leave free for etcd.
	Reserve api.Quantity `json:"reserve,omitzero"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `json:"logLevel,omitzero"`

	// StateDir and RunDir come from flags: all paths are below them.
	StateDir string `json:"-"`
	RunDir   string `json:"-"`
	// Version is the program's own.
	Version string `json:"-"`
}

// Listen holds the addresses that bootd listens on.
type Listen struct {
	API  string `json:"api,omitzero"`  // :8443
	HTTP string `json:"http,omitzero"` // :8080
	TFTP string `json:"tftp,omitzero"` // :69
}

// StoreConfig configures the etcd that stores the objects: bootd's own unless endpoints are named.
type StoreConfig struct {
	Endpoints []string `json:"endpoints,omitempty"`
	CA        string   `json:"ca,omitzero"`
	Cert      string   `json:"cert,omitzero"`
	Key       string   `json:"key,omitzero"`
	// FlannelListen lets stock flannelds join Networks, on this address, such as :2379.
	FlannelListen string `json:"flannelListen,omitzero"`
}

// ImagesConfig permits sources of Images that are refused by default: bootd can reach addresses that the authors of
// Images may not.
type ImagesConfig struct {
	// Allow lists prefixes, addresses and host names, each with or without a :port.
	Allow []string `json:"allow,omitempty"`
}

// TokenConfig is a person's bearer token, by its digest.
type TokenConfig struct {
	Name   string     `json:"name"`
	Role   string     `json:"role"`
	SHA256 api.SHA256 `json:"sha256"` // of the token
}

// LoadConfig reads a configuration file. A missing file counts as an empty one unless it must exist.
func LoadConfig(path string, mustExist bool) (Config, error) {
	var c Config
	raw, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !mustExist:
	case err != nil:
		return c, fmt.Errorf("read the configuration: %w", err)
	default:
		doc, err := yaml.YAMLToJSONStrict(raw)
		if err != nil {
			return c, fmt.Errorf("%s: %w", path, err)
		}
		if string(doc) == "null" {
			break
		}
		if err := api.DecodeStrict(doc, &c); err != nil {
			return c, fmt.Errorf("%s: %w", path, err)
		}
	}
	c.setDefaults()
	return c, c.validate(path)
}

func (c *Config) setDefaults() {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&c.Listen.API, ":8443")
	def(&c.Listen.HTTP, ":8080")
	def(&c.Listen.TFTP, ":69")
	def(&c.IPXE, "/usr/lib/ipxe")
	def(&c.LogLevel, "info")
	if c.Nodeagent == "" {
		if self, err := os.Executable(); err == nil {
			c.Nodeagent = filepath.Join(filepath.Dir(self), "nodeagent")
		}
	}
	if c.Reserve.IsZero() {
		c.Reserve, _ = api.ParseQuantity("512Mi")
	}
}

func (c *Config) validate(path string) error {
	for _, l := range []struct{ name, listen string }{{"api", c.Listen.API}, {"http", c.Listen.HTTP}, {"tftp", c.Listen.TFTP}} {
		if _, err := api.ListenPort(l.listen); err != nil {
			return fmt.Errorf("%s: listen.%s %q: %w", path, l.name, l.listen, err)
		}
	}
	for i, u := range c.Advertise {
		if _, _, err := hostOf(u); err != nil {
			return fmt.Errorf("%s: advertise[%d] %q: %w", path, i, u, err)
		}
	}
	if c.Reserve.Value() < 0 {
		return fmt.Errorf("%s: invalid reserve of %d bytes: want how much must stay free, such as 512Mi", path, c.Reserve.Value())
	}
	if err := new(slog.Level).UnmarshalText([]byte(c.LogLevel)); err != nil {
		return fmt.Errorf("%s: invalid logLevel %q: want debug, info, warn or error", path, c.LogLevel)
	}
	if _, err := image.ParseAllow(c.Images.Allow); err != nil {
		return fmt.Errorf("%s: images.allow: %w", path, err)
	}
	if l := c.Store.FlannelListen; l != "" {
		if _, err := api.ListenPort(l); err != nil {
			return fmt.Errorf("%s: store.flannelListen %q: %w", path, l, err)
		}
	}
	for i, t := range c.Tokens {
		if t.Name == "" || t.SHA256 == "" || (t.Role != "admin" && t.Role != "operator" && t.Role != "viewer") {
			return fmt.Errorf("%s: tokens[%d] needs a name, a sha256 and a role (admin, operator or viewer)", path, i)
		}
	}
	return nil
}
