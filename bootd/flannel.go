package bootd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/budget"
	"github.com/rackweft/rackweft/internal/file"
)

// flannelConns is how many connections flannelds may have open together.
const flannelConns = 2048

// flannelLife is how long a stock flanneld's certificate is valid.
const flannelLife = 10 * 365 * 24 * time.Hour

// serveFlannel lets stock flannelds into the Networks, when store.flannelListen
// asks for it: etcd's API with mutual TLS, each certificate seeing the keys of
// one Network alone.
func (d *daemon) serveFlannel(ctx context.Context) error {
	listen := d.config.Store.FlannelListen
	if listen == "" {
		return nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("listen for flannelds (store.flannelListen): %w", err)
	}
	conf := d.ca.ServerTLS()
	conf.ClientAuth = tls.RequireAndVerifyClientCert
	gate := &store.Gate{Store: d.store, Network: d.networkOf, Held: func() bool { return store.Held(d.cache) }, Log: d.log.With("component", "flannel")}
	// Whoever shows no certificate of a Network is a stranger: three quarters are not for those.
	return gate.Serve(ctx, budget.Listen(l, budget.Limits{Total: flannelConns, PerPeer: 16, Reserve: flannelConns - flannelConns/4, Known: d.known}), conf)
}

// networkOf is the Network that a certificate is for, while it is the same.
func (d *daemon) networkOf(cert *x509.Certificate) (string, error) {
	name, uid, err := ca.NetworkOf(cert)
	if err != nil {
		return "", err
	}
	n, ok := store.Cached[api.Network](d.cache, name)
	if !ok || n.Metadata.UID != uid {
		return "", fmt.Errorf("the Network %s that this certificate was issued for is no more", name)
	}
	return name, nil
}

// followFlannel leaves a client certificate for every Network in
// <state-dir>/flannel/<network>, to be copied to where a flanneld runs, and
// takes it away with the Network.
func (d *daemon) followFlannel(ctx context.Context) error {
	if d.config.Store.FlannelListen == "" {
		return nil
	}
	networks, err := kinds("Network")
	if err != nil {
		return err
	}
	return d.cache.Subscribe(ctx, func(c store.Change) {
		if err := d.certifyNetwork(c); err != nil {
			d.log.Error("a flanneld's certificate", "network", c.Name, "error", err)
		}
	}, networks...)
}

func (d *daemon) certifyNetwork(c store.Change) error {
	dir := filepath.Join(d.config.StateDir, "flannel", c.Name)
	if c.New == nil {
		return os.RemoveAll(dir)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
	if err == nil {
		if _, uid, err := ca.NetworkOf(pair.Leaf); err == nil && uid == c.New.Meta().UID {
			return nil
		}
	}
	cert, key, err := d.ca.IssueNetwork(c.Name, c.New.Meta().UID, flannelLife)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make a directory for it: %w", err)
	}
	return errors.Join(file.Replace(filepath.Join(dir, "ca.crt"), d.ca.CertPEM(), file.Options{}),
		file.Replace(filepath.Join(dir, "client.key"), key, file.Options{}), file.Replace(filepath.Join(dir, "client.crt"), cert, file.Options{}))
}
