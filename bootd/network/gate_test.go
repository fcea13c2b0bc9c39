package network

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/budget"
)

// certificate issues a flanneld's and returns the directory that it is in.
func (b *bench) certificate(name string) string {
	b.t.Helper()
	cert, key, err := b.CA.IssueNetwork(name, b.network(name).Metadata.UID, time.Hour)
	if err != nil {
		b.t.Fatal(err)
	}
	dir := b.t.TempDir()
	for file, content := range map[string][]byte{"client.crt": cert, "client.key": key, "ca.crt": b.CA.CertPEM()} {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
	return dir
}

// serve opens the Gate on a listener.
func (b *bench) serve(l net.Listener) {
	b.t.Helper()
	if _, err := b.CA.EnsureServer([]string{"localhost"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")}); err != nil {
		b.t.Fatal(err)
	}
	conf := b.CA.ServerTLS()
	conf.ClientAuth = tls.RequireAndVerifyClientCert
	g := &store.Gate{Store: b.Store, Log: b.Log, Held: func() bool { return store.Held(b.Cache) }, Network: func(c *x509.Certificate) (string, error) {
		name, uid, err := ca.NetworkOf(c)
		if err != nil {
			return "", err
		}
		n, ok := store.Cached[api.Network](b.Cache, name)
		if !ok || n.Metadata.UID != uid {
			return "", errors.New("no such Network")
		}
		return name, nil
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(ctx, l, conf) }()
	b.t.Cleanup(func() { cancel(); <-done })
}

func (b *bench) client(address, dir string) *clientv3.Client {
	b.t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
	if err != nil {
		b.t.Fatal(err)
	}
	c, err := clientv3.New(clientv3.Config{Logger: zap.NewNop(), Endpoints: []string{"https://" + address}, TLS: &tls.Config{RootCAs: b.CA.Pool(), Certificates: []tls.Certificate{pair}}})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestGate has a flanneld of one Network try all that it must not.
func TestGate(t *testing.T) {
	b := newBench(t)
	b.Create(machine(1), network("net"), network("other"))
	b.settled("net", "Allocated", 1)
	b.settled("other", "Allocated", 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.serve(l)
	mine, theirs := b.client(l.Addr().String(), b.certificate("net")), b.client(l.Addr().String(), b.certificate("other"))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	key := func(rest string) string { return store.FlannelPrefix + rest }
	good := string(leaseValue(100, netip.MustParseAddr("198.18.11.1"), "56:aa:bb:cc:dd:ee"))

	if r, err := mine.Get(ctx, key("net/config")); err != nil || len(r.Kvs) != 1 {
		t.Fatalf("its own configuration: %v %v", r, err)
	}
	granted, err := mine.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := theirs.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	seen := mine.Watch(ctx, key("net/subnets"), clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if r := <-seen; !r.Created {
		t.Fatalf("%+v", r)
	}
	if _, err := mine.Put(ctx, key("net/subnets/10.5.9.0-24"), good, clientv3.WithLease(granted.ID)); err != nil {
		t.Fatal(err)
	}
	if r := <-seen; len(r.Events) != 1 {
		t.Errorf("%+v", r)
	}
	if _, err := mine.KeepAliveOnce(ctx, granted.ID); err != nil {
		t.Error(err)
	}

	for name, try := range map[string]func() error{
		"read another Network":       func() error { _, err := mine.Get(ctx, key("other/config")); return err },
		"read all Networks":          func() error { _, err := mine.Get(ctx, key(""), clientv3.WithPrefix()); return err },
		"read everything":            func() error { _, err := mine.Get(ctx, "\x00", clientv3.WithFromKey()); return err },
		"read from its own key on":   func() error { _, err := mine.Get(ctx, key("net/config"), clientv3.WithFromKey()); return err },
		"read objects":               func() error { _, err := mine.Get(ctx, "/rackweft/v1alpha1/machines/r1u01"); return err },
		"write its configuration":    func() error { _, err := mine.Put(ctx, key("net/config"), "{}"); return err },
		"write another Network":      func() error { _, err := mine.Put(ctx, key("other/subnets/10.5.9.0-24"), good); return err },
		"write a host's lease":       func() error { _, err := mine.Put(ctx, key("net/subnets/10.5.1.0-24"), good); return err },
		"delete a host's lease":      func() error { _, err := mine.Delete(ctx, key("net/subnets/10.5.1.0-24")); return err },
		"delete all leases":          func() error { _, err := mine.Delete(ctx, key("net/subnets/"), clientv3.WithPrefix()); return err },
		"write a host's record":      func() error { _, err := mine.Put(ctx, key("net/hosts/10.5.9.0-24"), "{}"); return err },
		"write a key that is poison": func() error { _, err := mine.Put(ctx, key("net/subnets/10.5.9.9-32"), good); return err },
		"write a value that is":      func() error { _, err := mine.Put(ctx, key("net/subnets/10.5.8.0-24"), `{"PublicIP":"x"}`); return err },
		"use another's lease": func() error {
			_, err := mine.Put(ctx, key("net/subnets/10.5.8.0-24"), good, clientv3.WithLease(foreign.ID))
			return err
		},
		"revoke another's lease": func() error { _, err := mine.Revoke(ctx, foreign.ID); return err },
		"keep another's lease":   func() error { _, err := mine.KeepAliveOnce(ctx, foreign.ID); return err },
		"list leases":            func() error { _, err := mine.Leases(ctx); return err },
		"compact":                func() error { _, err := mine.Compact(ctx, 1); return err },
		"delete in a transaction": func() error {
			_, err := mine.Txn(ctx).Then(clientv3.OpDelete(key("net/subnets/10.5.1.0-24"))).Commit()
			return err
		},
		"read another in a transaction": func() error { _, err := mine.Txn(ctx).Then(clientv3.OpGet(key("other/config"))).Commit(); return err },
		"compare another's key": func() error {
			_, err := mine.Txn(ctx).If(clientv3.Compare(clientv3.Version(key("other/config")), ">", 0)).Commit()
			return err
		},
		"nest a transaction": func() error {
			_, err := mine.Txn(ctx).Then(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(key("other/config"), "{}")}, nil)).Commit()
			return err
		},
		"list members": func() error { _, err := mine.MemberList(ctx); return err },
		"add a user":   func() error { _, err := mine.UserAdd(ctx, "root", "x"); return err },
		"watch another Network": func() error {
			for r := range mine.Watch(ctx, key("other/"), clientv3.WithPrefix(), clientv3.WithCreatedNotify()) {
				return r.Err()
			}
			return errors.New("the watch ended")
		},
	} {
		if err := try(); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A certificate of an earlier Network of that name opens nothing.
	stale := b.certificate("other")
	if err := b.Store.Delete(ctx, api.KindOf(new(api.Machine)), "r1u01", ""); err != nil {
		t.Fatal(err)
	}
	b.settled("other", "Allocated", 0)
	if err := b.Store.Delete(ctx, api.KindOf(new(api.Network)), "other", ""); err != nil {
		t.Fatal(err)
	}
	b.eventually("the Network is gone", func() bool { // its finalizer goes after its layout
		_, err := store.Get[api.Network](ctx, b.Store, "other")
		return errors.Is(err, store.ErrNotFound) && len(b.layout("other")) == 0
	})
	b.Create(network("other"))
	b.settled("other", "Allocated", 0)
	if _, err := b.client(l.Addr().String(), stale).Get(ctx, key("other/config")); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a certificate of the Network before it: %v", err)
	}
}

// TestGateHeld has flannelds of a restored Site keep the leases that the backup knows, and get no other until the Site
// is no longer held.
func TestGateHeld(t *testing.T) {
	b := newBench(t)
	b.Create(machine(1), network("net"))
	b.settled("net", "Allocated", 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.serve(l)
	c := b.client(l.Addr().String(), b.certificate("net"))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	const known, fresh = "net/subnets/10.5.9.0-24", "net/subnets/10.5.8.0-24"
	value := string(leaseValue(100, netip.MustParseAddr("198.18.11.1"), "56:aa:bb:cc:dd:ee"))
	put := func(key string) error {
		_, err := c.Put(ctx, store.FlannelPrefix+key, value)
		return err
	}
	if err := put(known); err != nil {
		t.Fatal(err)
	}
	hold := func(held bool) {
		t.Helper()
		site, err := store.Mutate(ctx, b.Store, api.SiteName, func(s *api.Site) error {
			s.Status.Recovery = &api.Recovery{Restored: time.Now(), Held: held}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Cache.WaitRevision(ctx, store.RevisionOf(site)); err != nil {
			t.Fatal(err)
		}
	}
	hold(true)
	if err := put(known); err != nil {
		t.Errorf("a lease that is known is not renewed: %v", err)
	}
	if err := put(fresh); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "weftctl restore status") {
		t.Errorf("a new lease while the Site is held: %v", err)
	}
	_, err = c.Txn(ctx).Then(clientv3.OpPut(store.FlannelPrefix+fresh, value)).Commit()
	if status.Code(err) != codes.Unavailable {
		t.Errorf("a new lease in a transaction while the Site is held: %v", err)
	}
	hold(false)
	if err := put(fresh); err != nil {
		t.Errorf("a new lease once the Site is held no more: %v", err)
	}
}

// TestGateInACrowd fills what strangers may have of the Gate with connections that show no certificate.
func TestGateInACrowd(t *testing.T) {
	b := newBench(t)
	b.Create(machine(1), network("net"))
	b.settled("net", "Allocated", 1)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.serve(budget.Listen(inner, budget.Limits{Total: 32, PerPeer: 16, Reserve: 24, Idle: time.Millisecond}))
	before := b.client(inner.Addr().String(), b.certificate("net"))
	key := store.FlannelPrefix + "net/config"
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if _, err := before.Get(ctx, key); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	for _, c := range []*clientv3.Client{before, b.client(inner.Addr().String(), b.certificate("net"))} {
		if r, err := c.Get(ctx, key); err != nil || len(r.Kvs) != 1 {
			t.Errorf("%v, %v", r, err)
		}
	}
}
