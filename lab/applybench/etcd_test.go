package applybench

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/rackweft/rackweft/api"
)

// etcdDir has this program be an etcd of its own, with its data in that directory.
const etcdDir = "RACKWEFT_BENCH_ETCD"

// senders is how many puts weftctl has under way at once.
const senders = 16

// pair is a key and what bootd first stored under it.
type pair struct{ key, value string }

// runEtcd serves with etcd's own settings, on a socket in the directory.
func runEtcd(dir string) int {
	c := embed.NewConfig()
	c.Dir, c.LogLevel = filepath.Join(dir, "data"), "error"
	socket := url.URL{Scheme: "unix", Path: filepath.Join(dir, "etcd.sock")}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{socket}, []url.URL{socket}
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:1"} // nothing listens there
	c.ListenPeerUrls, c.AdvertisePeerUrls = nil, []url.URL{peer}
	c.InitialCluster = c.Name + "=" + peer.String()
	e, err := embed.StartEtcd(c)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stderr, <-e.Err()) // until it is killed
	return 1
}

func dial(b *testing.B, socket string) *clientv3.Client {
	b.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, DialTimeout: 10 * time.Second})
	must(b, err)
	return c
}

// storedBy reads what bootd stored when each Machine was created.
func storedBy(b *testing.B, socket string) []pair {
	b.Helper()
	c := dial(b, socket)
	defer func() { _ = c.Close() }()
	keys, err := c.Get(b.Context(), "/"+api.Version+"/machines/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	must(b, err)
	var list []pair
	for _, kv := range keys.Kvs {
		first, err := c.Get(b.Context(), string(kv.Key), clientv3.WithRev(kv.CreateRevision))
		must(b, err)
		list = append(list, pair{string(kv.Key), string(first.Kvs[0].Value)})
	}
	return list
}

// measureEtcd puts the same bytes under the same keys, with as many clients, into an etcd that does nothing else;
// what bootd finds unchanged is read from it.
func measureEtcd(b *testing.B, stored []pair, n int, took map[string][]time.Duration) {
	dir := b.TempDir()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), etcdDir+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	must(b, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	c := dial(b, filepath.Join(dir, "etcd.sock"))
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	_, err := c.Put(ctx, "ready", "", clientv3.WithPrevKV())
	must(b, err)

	add := func(name string, t time.Duration) { took[name] = append(took[name], t) }
	each := func(do func(pair) error) time.Duration {
		began := time.Now()
		var next atomic.Int64
		var wg sync.WaitGroup
		for range senders {
			wg.Go(func() {
				for i := int(next.Add(1)) - 1; i < len(stored); i = int(next.Add(1)) - 1 {
					if err := do(stored[i]); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		return time.Since(began)
	}
	add(fmt.Sprintf("apply-%d", n), each(func(p pair) error { _, err := c.Put(b.Context(), p.key, p.value); return err }))
	add(fmt.Sprintf("apply-%d-again", n), each(func(p pair) error { _, err := c.Get(b.Context(), p.key); return err }))
	note("%d objects in etcd alone: %.2fs, read: %.2fs", n, took[fmt.Sprintf("apply-%d", n)][len(took[fmt.Sprintf("apply-%d", n)])-1].Seconds(),
		took[fmt.Sprintf("apply-%d-again", n)][len(took[fmt.Sprintf("apply-%d-again", n)])-1].Seconds())

	var all []time.Duration
	watched, end := context.WithCancel(clientv3.WithRequireLeader(b.Context()))
	defer end()
	heard := c.Watch(watched, "/"+api.Version+"/machines/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-heard
	for i := range changes {
		began := time.Now()
		_, err := c.Put(b.Context(), stored[i*7].key, stored[i*7].value+strconv.Itoa(i))
		must(b, err)
		<-heard
		all = append(all, time.Since(began))
	}
	add(fmt.Sprintf("watch-%d", n), median(all))
}
