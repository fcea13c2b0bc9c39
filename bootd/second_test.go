package bootd_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// etcd runs a real etcd in the rig's namespace, on 198.18.0.1:2379.
func (r *rig) etcd() *clientv3.Client {
	r.t.Helper()
	exe := program(r.t, "etcd", "go.etcd.io/etcd/server/v3")
	const url = "http://198.18.0.1:2379"
	cmd := exec.Command("ip", "netns", "exec", r.ns, exe, "--data-dir", filepath.Join(r.dir, "e"),
		"--listen-client-urls", url, "--advertise-client-urls", url, "--log-level", "error")
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{url}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return r.dial("198.18.0.1:2379") })},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	r.revision(c)
	return c
}

// revision is that of the last write of anyone.
func (r *rig) revision(c *clientv3.Client) int64 {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	resp, err := c.Get(ctx, "x", clientv3.WithCountOnly())
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Header.Revision
}

// quiet waits until nothing is written for a while.
func (r *rig) quiet(c *clientv3.Client) int64 {
	r.t.Helper()
	for at := r.revision(c); ; {
		time.Sleep(2 * time.Second)
		now := r.revision(c)
		if now == at {
			return now
		}
		at = now
	}
}

// join connects another rig's namespace to this one's network, as 198.18.0.2.
func (r *rig) join(other *rig) {
	r.t.Helper()
	r.run("ip", "-n", other.ns, "addr", "del", "198.18.0.1/24", "dev", "br0")
	r.run("ip", "-n", other.ns, "addr", "add", "198.18.0.2/24", "dev", "br0")
	r.run("ip", "link", "add", "up0", "netns", r.ns, "type", "veth", "peer", "name", "up0", "netns", other.ns)
	for _, ns := range []string{r.ns, other.ns} {
		r.run("ip", "-n", ns, "link", "set", "up0", "master", "br0", "up")
	}
	for _, x := range []*rig{r, other} {
		x.write("bootd.yaml", fmt.Sprintf("nodeagent: %s/nodeagent\nipxe: %s/ipxe\nreserve: 1Mi\nstore: {endpoints: [\"http://198.18.0.1:2379\"]}\n", x.dir, x.dir))
	}
}

// listens tells what the rig's bootd listens on.
func (r *rig) listens() string {
	r.t.Helper()
	out, err := command.Output(exec.Command("ip", "netns", "exec", r.ns, "ss", "-Hlntup"))
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = os.Stat(filepath.Join(r.dir, "r", "bootd.sock"))
	if err == nil {
		out = append(out, "bootd.sock"...)
	}
	return strings.TrimSpace(string(out))
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
	if s == syscall.SIGSTOP {
		p.stopped()
	}
}

// stopped waits until every thread stands still: the signal stops the others only
// when the thread that takes it gets to run.
func (p *process) stopped() {
	p.t.Helper()
	for range 600 {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
		if err != nil || len(threads) == 0 {
			p.t.Fatalf("the threads of bootd: %v", err)
		}
		if !slices.ContainsFunc(threads, running) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.t.Fatal("bootd does not stop")
}

// running reports whether the thread of a stat file of proc(5) is not stopped.
func running(stat string) bool {
	content, err := os.ReadFile(stat)
	i := strings.LastIndexByte(string(content), ')')
	return err == nil && !strings.HasPrefix(string(content[i+1:]), " T")
}

// TestSecondBootdOnOneStore: of two bootds with one external store one serves.
// The other one writes nothing and listens nowhere until the first is gone: ended,
// killed, or stopped for longer than etcd waits. One that was stopped serves and
// writes nothing when it goes on.
func TestSecondBootdOnOneStore(t *testing.T) {
	t.Parallel()
	a, b := newRig(t), newRig(t)
	a.join(b)
	etcd := a.etcd()
	first := a.start("r")
	first.says("msg=ready")
	if _, err := a.client("r").Put(t.Context(), layer("before"), false); err != nil {
		t.Fatal(err)
	}

	stranger := b.start("r")
	if code := stranger.exit(); code != configFault || !strings.Contains(stranger.last(), "the Site's CA is missing") || !strings.Contains(stranger.last(), "from the bootd that has the Site") {
		t.Errorf("without the Site's keys: exit %d, %s", code, stranger.last())
	}
	for _, f := range []string{"ca", "seal.key"} {
		b.run("cp", "-a", filepath.Join(a.dir, "s", f), filepath.Join(b.dir, "s", f))
	}
	quiet := a.quiet(etcd)
	second := b.start("r")
	second.says("another bootd serves this Site")
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"host=" + host, fmt.Sprintf("pid=%d", first.cmd.Process.Pid), "stateDir=" + filepath.Join(a.dir, "s"), "since="} {
		if !strings.Contains(second.out.String(), word) {
			t.Errorf("it does not say %q:\n%s", word, second.out)
		}
	}
	if now := a.quiet(etcd); now != quiet {
		t.Errorf("%d writes while the second one waits", now-quiet)
	}
	if l := b.listens(); l != "" {
		t.Errorf("the second one listens:\n%s", l)
	}

	// The first one is stopped. What was asked of it meanwhile it must not do.
	first.signal(syscall.SIGSTOP)
	late := make(chan error, 1)
	go func() {
		_, err := a.client("r").Put(t.Context(), layer("late"), false)
		late <- err
	}()
	second.says("msg=ready")
	if _, err := b.client("r").Put(t.Context(), layer("by-second"), false); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Get[api.Layer](t.Context(), b.client("r"), "before"); err != nil {
		t.Error(err)
	}
	first.signal(syscall.SIGCONT)
	if err := <-late; err == nil {
		t.Error("a bootd that was stopped takes a change when it goes on")
	}
	first.says("this one has stopped serving it")
	first.says("another bootd serves this Site")
	if l := a.listens(); strings.Contains(l, "bootd") {
		t.Errorf("the first one still listens:\n%s", l)
	}
	if _, err := api.Get[api.Layer](t.Context(), b.client("r"), "late"); err == nil {
		t.Error("the late change is stored")
	}

	// The second one is killed; the first one takes the Site over again.
	ready := strings.Count(first.out.String(), "msg=ready")
	second.signal(syscall.SIGKILL)
	second.exit()
	waittest.Soon(time.Minute, func() bool { return strings.Count(first.out.String(), "msg=ready") > ready })
	if _, err := api.Get[api.Layer](t.Context(), a.client("r"), "by-second"); err != nil {
		t.Errorf("the first one, again: %v\n%s", err, first.out)
	}

	// Killed and started again on its own state, it need not wait for itself.
	first.signal(syscall.SIGKILL)
	first.exit()
	first = a.start("r")
	first.says("msg=ready")
	if strings.Contains(first.out.String(), "another bootd") {
		t.Errorf("it waits for itself:\n%s", first.out)
	}
	second = b.start("r")
	second.says("another bootd serves this Site")
	first.stop()
	second.says("msg=ready")
	second.stop()
}
