package store

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/rackweft/rackweft/internal/budget"
)

// Gate is etcd's API for stock flannelds, restricted to the keys, watches and leases of one Network, that of the
// client certificate. A flanneld can read all of the Network's keys and write leases that do not belong to a
// host.
//
// It is a proxy rather than etcd's own users: those would also apply to bootd's socket, and could prevent a
// tenant neither from writing a key that makes every flanneld drop its peers, nor from taking a host's lease.
type Gate struct {
	Store *Store
	// Network returns the Network of a client certificate.
	Network func(*x509.Certificate) (string, error)
	// Held reports that no new lease may be taken; nil for never.
	Held func() bool
	Log  *slog.Logger

	mu     sync.Mutex
	leases map[int64]string // etcd leases → the Network of the flanneld that has them
}

// Serve answers on l until ctx ends. conf must ask for client certificates.
func (g *Gate) Serve(ctx context.Context, l net.Listener, conf *tls.Config) error {
	g.mu.Lock()
	g.leases = map[int64]string{}
	g.mu.Unlock()
	s := grpc.NewServer(grpc.Creds(vouching{credentials.NewTLS(conf)}), grpc.MaxRecvMsgSize(1<<20), grpc.MaxConcurrentStreams(64),
		grpc.ConnectionTimeout(handshakeTime), grpc.MaxHeaderListSize(64<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTime, Time: idleTime, Timeout: handshakeTime}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}))
	pb.RegisterKVServer(s, &gateKV{g: g})
	pb.RegisterWatchServer(s, &gateWatch{g: g})
	pb.RegisterLeaseServer(s, &gateLease{g: g})
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	if err := s.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve etcd to flannelds on %s: %w", l.Addr(), err)
	}
	return ctx.Err()
}

const (
	// handshakeTime limits the handshake of a connection, idleTime how long one without a call may stay.
	handshakeTime = 10 * time.Second
	idleTime      = 2 * time.Minute
)

// vouching marks a connection with a valid certificate as authenticated.
type vouching struct {
	credentials.TransportCredentials
}

func (v vouching) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := v.TransportCredentials.ServerHandshake(c)
	if err == nil {
		budget.Trust(c)
	}
	return secured, info, err
}

// Clone implements credentials.TransportCredentials.
func (v vouching) Clone() credentials.TransportCredentials {
	return vouching{v.TransportCredentials.Clone()}
}

func (g *Gate) upstream() *grpc.ClientConn { return g.Store.client.ActiveConnection() }

// prefix is the key prefix of the caller's Network.
func (g *Gate) prefix(ctx context.Context) (network, prefix string, err error) {
	p, ok := peer.FromContext(ctx)
	info, isTLS := credentials.TLSInfo{}, false
	if ok {
		info, isTLS = p.AuthInfo.(credentials.TLSInfo)
	}
	if !isTLS || len(info.State.VerifiedChains) == 0 {
		return "", "", status.Error(codes.Unauthenticated, "a client certificate of a Network is required")
	}
	network, err = g.Network(info.State.PeerCertificates[0])
	if err != nil {
		g.Log.Warn("a flanneld is refused", "peer", p.Addr, "error", err)
		return "", "", status.Error(codes.PermissionDenied, err.Error())
	}
	return network, FlannelPrefix + network + "/", nil
}

// read checks that a range lies within the caller's Network.
func (g *Gate) read(ctx context.Context, key, end []byte) error {
	network, prefix, err := g.prefix(ctx)
	if err != nil {
		return err
	}
	last := []byte(clientv3.GetPrefixRangeEnd(prefix))
	toTheEnd := bytes.Equal(end, []byte{0}) // etcd's notation for every key from there on
	if !bytes.HasPrefix(key, []byte(prefix)) || toTheEnd || len(end) > 0 && bytes.Compare(end, last) > 0 {
		return status.Errorf(codes.PermissionDenied, "this certificate is for the keys under %s, those of Network %s", prefix, network)
	}
	return nil
}

// write checks that a key is a lease of the caller's Network, and not a host's.
func (g *Gate) write(ctx context.Context, key []byte) error {
	if err := g.Store.stale; err != nil {
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	if err := g.Store.Holding(); err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	network, prefix, err := g.prefix(ctx)
	if err != nil {
		return err
	}
	rest, ok := bytes.CutPrefix(key, []byte(prefix+string(FlannelSubnet)+"/"))
	subnet, parsed := ParseFlannelSubnet(string(rest))
	if !ok || !parsed {
		return status.Errorf(codes.PermissionDenied, "invalid lease key %q of Network %s: want %ssubnets/ADDRESS-LENGTH", key, network, prefix)
	}
	host := FlannelID{Network: network, Kind: FlannelHost, Subnet: subnet}.String()
	resp, err := g.Store.client.Get(ctx, host, clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	if resp.Count > 0 {
		return status.Errorf(codes.PermissionDenied, "%s is the lease of a host that runs nodeagent: stop the flanneld there", subnet)
	}
	if g.Held != nil && g.Held() {
		return g.renews(ctx, string(key), subnet)
	}
	return nil
}

// renews permits writes of a known lease.
func (g *Gate) renews(ctx context.Context, key string, subnet netip.Prefix) error {
	resp, err := g.Store.client.Get(ctx, key, clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	if resp.Count == 0 {
		return status.Errorf(codes.Unavailable, "bootd was restored and does not know yet whether %s is free: weftctl restore status", subnet)
	}
	return nil
}

func (g *Gate) put(ctx context.Context, r *pb.PutRequest) error {
	if err := g.write(ctx, r.Key); err != nil {
		return err
	}
	var attrs struct{ PublicIP, BackendType string }
	if err := json.Unmarshal(r.Value, &attrs); err != nil || net.ParseIP(attrs.PublicIP).To4() == nil {
		return status.Errorf(codes.InvalidArgument, "invalid lease %q: every flanneld of this Network would drop its peers", r.Value)
	}
	return g.owns(ctx, r.Lease)
}

// owns checks that an etcd lease was granted to the caller's Network.
func (g *Gate) owns(ctx context.Context, id int64) error {
	network, _, err := g.prefix(ctx)
	if err != nil || id == 0 {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.leases[id] != network {
		return status.Errorf(codes.PermissionDenied, "etcd lease %x was granted to another client, or before bootd was started", id)
	}
	return nil
}

type gateKV struct {
	pb.UnimplementedKVServer
	g *Gate
}

func (k *gateKV) client() pb.KVClient { return pb.NewKVClient(k.g.upstream()) }

func (k *gateKV) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := k.g.read(ctx, r.Key, r.RangeEnd); err != nil {
		return nil, err
	}
	return k.client().Range(ctx, r)
}

func (k *gateKV) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := k.g.put(ctx, r); err != nil {
		return nil, err
	}
	return k.client().Put(ctx, r)
}

func (k *gateKV) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if len(r.RangeEnd) > 0 {
		return nil, status.Error(codes.PermissionDenied, "a flanneld deletes one lease at a time")
	}
	if err := k.g.write(ctx, r.Key); err != nil {
		return nil, err
	}
	return k.client().DeleteRange(ctx, r)
}

func (k *gateKV) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	for _, c := range r.Compare {
		if err := k.g.read(ctx, c.Key, c.RangeEnd); err != nil {
			return nil, err
		}
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if err := k.op(ctx, op); err != nil {
				return nil, err
			}
		}
	}
	return k.client().Txn(ctx, r)
}

func (k *gateKV) op(ctx context.Context, op *pb.RequestOp) error {
	if r := op.GetRequestRange(); r != nil {
		return k.g.read(ctx, r.Key, r.RangeEnd)
	}
	if r := op.GetRequestPut(); r != nil {
		return k.g.put(ctx, r)
	}
	return status.Error(codes.PermissionDenied, "a flanneld's transaction may only read and put")
}

func (k *gateKV) Compact(context.Context, *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	return nil, status.Error(codes.PermissionDenied, "bootd compacts its etcd itself")
}

type gateWatch struct {
	pb.UnimplementedWatchServer
	g *Gate
}

// Watch forwards a stream, and checks every watch on it.
func (w *gateWatch) Watch(down pb.Watch_WatchServer) error {
	group, ctx := errgroup.WithContext(down.Context())
	up, err := pb.NewWatchClient(w.g.upstream()).Watch(ctx)
	if err != nil {
		return err
	}
	group.Go(func() error { return pass(up.Recv, down.Send) })
	for {
		r, err := down.Recv()
		if err == nil {
			if c := r.GetCreateRequest(); c != nil {
				err = w.g.read(ctx, c.Key, c.RangeEnd)
			}
		}
		if err == nil {
			err = up.Send(r)
		}
		if err != nil {
			group.Go(func() error { return err }) // ends up, and with it the other direction
			return group.Wait()
		}
	}
}

// pass forwards one direction until it ends.
func pass[T any](recv func() (T, error), send func(T) error) error {
	for {
		m, err := recv()
		if err == nil {
			err = send(m)
		}
		if err != nil {
			return err
		}
	}
}

type gateLease struct {
	pb.UnimplementedLeaseServer
	g *Gate
}

func (l *gateLease) client() pb.LeaseClient { return pb.NewLeaseClient(l.g.upstream()) }

func (l *gateLease) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	network, _, err := l.g.prefix(ctx)
	if err != nil {
		return nil, err
	}
	r.ID = 0 // etcd chooses: an id reveals nothing about other tenants
	resp, err := l.client().LeaseGrant(ctx, r)
	if err != nil {
		return nil, err
	}
	l.g.mu.Lock()
	defer l.g.mu.Unlock()
	if len(l.g.leases) > maxGateLeases {
		clear(l.g.leases) // flannelds request a new one with each renewal, and never revoke the old one
	}
	l.g.leases[resp.ID] = network
	return resp, nil
}

// maxGateLeases limits the remembered leases: flanneld uses one right after it was granted, and never again.
const maxGateLeases = 10000

func (l *gateLease) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	if err := l.g.owns(ctx, r.ID); err != nil {
		return nil, err
	}
	return l.client().LeaseRevoke(ctx, r)
}

func (l *gateLease) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	if _, _, err := l.g.prefix(ctx); err != nil {
		return nil, err
	}
	r.Keys = false
	return l.client().LeaseTimeToLive(ctx, r)
}

func (l *gateLease) LeaseLeases(context.Context, *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	return nil, status.Error(codes.PermissionDenied, "leases of other tenants are not listed")
}

func (l *gateLease) LeaseKeepAlive(down pb.Lease_LeaseKeepAliveServer) error {
	ctx := down.Context()
	up, err := l.client().LeaseKeepAlive(ctx)
	if err != nil {
		return err
	}
	for {
		r, err := down.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = l.g.owns(ctx, r.ID)
		}
		if err == nil {
			err = up.Send(r)
		}
		var resp *pb.LeaseKeepAliveResponse
		if err == nil {
			resp, err = up.Recv()
		}
		if err == nil {
			err = down.Send(resp)
		}
		if err != nil {
			return err
		}
	}
}
