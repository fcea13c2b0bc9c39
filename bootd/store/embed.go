package store

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/rackweft/rackweft/internal/file"
)

// embedded is an etcd server in this process. It serves no peers and listens on a unix socket in the state
// directory only, so that any number of them can run on one machine.
type embedded struct {
	etcd     *embed.Etcd
	endpoint string
	dir      *os.File // holds the short path of the socket open; nil when it is short enough
	fatal    *fatal
	bridge   *bridge
}

func startEmbedded(ctx context.Context, conf Config, log *slog.Logger) (*embedded, error) {
	data := filepath.Join(conf.Dir, "etcd")
	if err := checkData(data); err != nil {
		return nil, damagedStore(conf.Dir, err)
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, fmt.Errorf("make etcd's directory: %w", err)
	}
	if err := file.Replace(startingFile(data), nil, file.Options{}); err != nil {
		return nil, fmt.Errorf("start etcd in %s: %w", data, err)
	}
	e := &embedded{fatal: newFatal(conf, log), bridge: newBridge(log.With("component", "etcd"), zapcore.WarnLevel)}
	socket, err := e.socketPath(conf.Dir)
	if err != nil {
		return nil, err
	}
	e.endpoint = "unix://" + socket
	logger := zap.New(e.bridge, zap.WithFatalHook(e.fatal), zap.WithPanicHook(e.fatal))
	c := etcdConfig(conf, socket, logger)

	// Etcd calls Fatal, on whatever goroutine, for files that it cannot read.
	started := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				started <- damagedStore(conf.Dir, fmt.Errorf("etcd: %v", p))
			}
		}()
		etcd, err := embed.StartEtcd(c)
		e.etcd = etcd
		started <- err
	}()
	select {
	case err = <-started:
	case err = <-e.fatal.early:
		// The rest of the start cannot be stopped; the caller is about to exit.
		return nil, notStarted(conf.Dir, err)
	}
	if err != nil {
		e.closeDir()
		return nil, notStarted(conf.Dir, err)
	}
	select {
	case <-e.etcd.Server.ReadyNotify():
	case err = <-e.fatal.early:
		return nil, notStarted(conf.Dir, err)
	case <-ctx.Done():
		e.abandon()
		return nil, ctx.Err()
	case <-time.After(time.Minute):
		e.abandon()
		return nil, fmt.Errorf("start etcd on %s: it was not ready within a minute: is the disk that slow?", c.Dir)
	}
	e.fatal.running()
	if err := file.Remove(startingFile(data)); err != nil {
		e.stop()
		return nil, fmt.Errorf("start etcd in %s: %w", data, err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		e.stop()
		return nil, fmt.Errorf("protect etcd's socket: %w", err)
	}
	return e, nil
}

func etcdConfig(conf Config, socket string, logger *zap.Logger) *embed.Config {
	c := embed.NewConfig()
	c.Name = "bootd"
	c.Dir = filepath.Join(conf.Dir, "etcd")
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)

	// A member must have a peer URL; nothing listens on this one.
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:1"}
	client := url.URL{Scheme: "unix", Path: socket}
	c.ListenPeerUrls = nil
	c.AdvertisePeerUrls = []url.URL{peer}
	c.ListenClientUrls = []url.URL{client}
	c.AdvertiseClientUrls = []url.URL{client}
	c.InitialCluster = c.Name + "=" + peer.String()
	c.EnableGRPCGateway = false

	// Raft keeps its newest entries in memory: SnapshotCount plus the catch-up
	// entries, which are not needed where there are no peers.
	c.SnapshotCount = 1000
	c.SnapshotCatchUpEntries = 100
	c.MaxSnapFiles = 2
	c.MaxWalFiles = 2
	c.QuotaBackendBytes = conf.Quota
	c.MaxRequestBytes = requestBytes
	// An idle watch advances with the store, so that it can be resumed.
	c.WatchProgressNotifyInterval = 15 * time.Second
	c.AutoCompactionMode = embed.CompactorModePeriodic
	c.AutoCompactionRetention = conf.KeepHistory.String()
	c.BootstrapDefragThresholdMegabytes = 64
	// It elects itself: the shortest election timeout that etcd allows for this tick.
	c.TickMs, c.ElectionMs = 100, 500
	// Spinning disks take longer than etcd's 100 ms, and no one can act on it.
	c.WarningApplyDuration = 2 * time.Second
	c.WarningUnaryRequestDuration = 2 * time.Second
	return c
}

// socketPath returns a path that fits into a sockaddr_un (108 bytes with the
// final NUL), through an open directory when the state directory's is too long.
func (e *embedded) socketPath(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find the state directory: %w", err)
	}
	path := filepath.Join(abs, "etcd.sock")
	if len(path) < 108 {
		return path, nil
	}
	if e.dir, err = os.Open(abs); err != nil {
		return "", fmt.Errorf("open the state directory: %w", err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/etcd.sock", e.dir.Fd()), nil
}

// stop ends the server after its pending requests, and waits for it.
func (e *embedded) stop() {
	e.bridge.mute.Store(true)
	e.etcd.Close()
	e.closeDir()
}

// abandon stops a server that is not ready. That may block for ever: then the server is abandoned, and the caller
// is about to exit.
func (e *embedded) abandon() {
	stopped := make(chan struct{})
	go func() { defer close(stopped); e.stop() }()
	select {
	case <-stopped:
	case <-time.After(5 * time.Second):
	}
}

func (e *embedded) closeDir() {
	if e.dir != nil {
		_ = e.dir.Close()
	}
}

// Exists reports whether a state directory holds a store.
func Exists(dir string) bool {
	logs, err := filepath.Glob(filepath.Join(dir, "etcd", "member", "wal", "*.wal"))
	return err == nil && len(logs) > 0
}
