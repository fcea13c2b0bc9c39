package bootd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/budget"
	"github.com/rackweft/rackweft/internal/file"
)

// flannelConns is the maximum number of connections of all flannelds.
const flannelConns = 2048

// flannelLife is how long a stock flanneld's certificate is valid.
const flannelLife = 10 * 365 * 24 * time.Hour

// flannelds serves the Networks to flannelds with a certificate for them.
type flannelds struct {
	listen string // store.flannelListen; "" for none
	dir    string // the state directory
	ca     *ca.Authority
	store  *store.Store
	cache  *store.Cache
	known  func(netip.Addr) bool
	log    *slog.Logger
}

// serve serves stock flannelds, if store.flannelListen is set: etcd's API with mutual TLS, where each certificate
// gives access to the keys of one Network only.
func (f *flannelds) serve(ctx context.Context) error {
	if f.listen == "" {
		return nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", f.listen)
	if err != nil {
		return fmt.Errorf("listen for flannelds (store.flannelListen): %w", err)
	}
	conf := f.ca.ServerTLS()
	conf.ClientAuth = tls.RequireAndVerifyClientCert
	gate := &store.Gate{Store: f.store, Network: f.networkOf, Held: func() bool { return store.Held(f.cache) }, Log: f.log.With("component", "flannel")}
	// Clients without a certificate of a Network are unauthenticated: three quarters of the connections are reserved
	// for the others.
	return gate.Serve(ctx, budget.Listen(l, budget.Limits{Total: flannelConns, PerPeer: 16, Reserve: flannelConns - flannelConns/4, Known: f.known}), conf)
}

// networkOf returns the Network that a certificate is for, if its uid is still the same.
func (f *flannelds) networkOf(cert *x509.Certificate) (string, error) {
	name, uid, err := ca.NetworkOf(cert)
	if err != nil {
		return "", err
	}
	n, ok := store.Cached[api.Network](f.cache, name)
	if !ok || n.Metadata.UID != uid {
		return "", fmt.Errorf("the Network %s that this certificate was issued for no longer exists", name)
	}
	return name, nil
}

// follow writes a client certificate for every Network to <state-dir>/flannel/<network>, to be copied to the
// flanneld's machine, and removes it with the Network.
func (f *flannelds) follow(ctx context.Context) error {
	if f.listen == "" {
		return nil
	}
	networks, err := api.LookupKinds("Network")
	if err != nil {
		return err
	}
	return f.cache.Subscribe(ctx, func(c store.Change) {
		if err := f.certify(c); err != nil {
			f.log.Error("a flanneld's certificate", "network", c.Name, "error", err)
		}
	}, networks...)
}

func (f *flannelds) certify(c store.Change) error {
	dir := filepath.Join(f.dir, "flannel", c.Name)
	if c.New == nil {
		return os.RemoveAll(dir)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
	if err == nil {
		if _, uid, err := ca.NetworkOf(pair.Leaf); err == nil && uid == c.New.Meta().UID {
			return nil
		}
	}
	cert, key, err := f.ca.IssueNetwork(c.Name, c.New.Meta().UID, flannelLife)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create a directory for it: %w", err)
	}
	return errors.Join(file.Replace(filepath.Join(dir, "ca.crt"), f.ca.CertPEM(), file.Options{}),
		file.Replace(filepath.Join(dir, "client.key"), key, file.Options{}), file.Replace(filepath.Join(dir, "client.crt"), cert, file.Options{}))
}
