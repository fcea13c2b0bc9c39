package bootd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/internal/file"
)

const (
	adminLife = 365 * 24 * time.Hour
	// adminRenew is how long before its expiry the certificate is recreated, at a start.
	adminRenew = 60 * 24 * time.Hour
)

// writeAdmin creates the first remote access: a client certificate with role admin and a configuration for weftctl,
// in <state-dir>/admin, to be copied unchanged to ~/.config/rackweft on another machine.
func (d *daemon) writeAdmin() error {
	dir := filepath.Join(d.config.StateDir, "admin")
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "admin.crt"), filepath.Join(dir, "admin.key"))
	if err == nil && time.Until(pair.Leaf.NotAfter) > adminRenew && d.ca.Issued(pair.Leaf) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("the administrator's certificate cannot be read and is recreated", "error", err)
	}
	server, err := d.adminURL()
	if err != nil {
		return err
	}
	if err := writePerson(d.ca, dir, "admin", "admin", server); err != nil {
		return err
	}
	d.log.Info("to administer from another machine, copy this directory there as ~/.config/rackweft", "directory", dir, "server", server)
	return nil
}

// IssuePerson creates a client certificate for a person, valid for a year, and a configuration for weftctl next to
// it, in a new directory out. server may be empty: the person then edits the configuration. bootd may be running.
func IssuePerson(stateDir, name, role, server, out string) error {
	if _, err := os.Stat(filepath.Join(stateDir, "ca")); err != nil {
		return fmt.Errorf("find the site's CA: %w (start bootd once, or name its --state-dir)", err)
	}
	if _, err := os.Stat(out); err == nil {
		return fmt.Errorf("%s exists already: name a new directory with --out", out)
	}
	authority, err := ca.Open(stateDir)
	if err != nil {
		return err
	}
	if server == "" {
		server = "https://localhost:8443"
	}
	return writePerson(authority, out, name, role, server)
}

// writePerson issues a certificate and writes everything that weftctl needs to use it.
func writePerson(authority *ca.Authority, dir, name, role, server string) error {
	cert, key, err := authority.IssuePerson(name, role, adminLife)
	if err != nil {
		return fmt.Errorf("create the certificate of %s: %w", name, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create the directory of %s: %w", name, err)
	}
	config := fmt.Sprintf("# weftctl reads this as ~/.config/rackweft/weftctl.yaml; files are beside it.\nserver: %s\nca: ca.crt\ncert: %s.crt\nkey: %[2]s.key\n", server, name)
	for _, f := range []struct {
		name    string
		content []byte
	}{{"ca.crt", authority.CertPEM()}, {"weftctl.yaml", []byte(config)}, {name + ".key", key}, {name + ".crt", cert}} {
		if err := file.Replace(filepath.Join(dir, f.name), f.content, file.Options{}); err != nil {
			return fmt.Errorf("write the certificate of %s: %w", name, err)
		}
	}
	return nil
}

// adminURL is the URL of the API for other machines: the advertised one, or else the first address that is not a
// loopback.
func (d *daemon) adminURL() (string, error) {
	if len(d.config.Advertise) > 0 {
		return d.config.Advertise[0], nil
	}
	host, portText, err := net.SplitHostPort(d.config.Listen.API)
	if err != nil {
		return "", fmt.Errorf("listen %q: %w", d.config.Listen.API, err)
	}
	if host == "" {
		host = "localhost"
		if a := d.firstAddress(); a.IsValid() {
			host = a.String()
		}
	}
	if _, err := strconv.Atoi(portText); err != nil {
		return "", fmt.Errorf("invalid listen %q: %q is not a port", d.config.Listen.API, portText)
	}
	return "https://" + net.JoinHostPort(host, portText), nil
}

func (d *daemon) firstAddress() netip.Addr {
	here := d.ifaces.get()
	for _, name := range slices.Concat(d.config.Interfaces, slices.Sorted(maps.Keys(here))) {
		for _, p := range here[name] {
			if !p.Addr().IsLoopback() {
				return p.Addr()
			}
		}
	}
	return netip.Addr{}
}
