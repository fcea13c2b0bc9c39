package bootd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// disk mounts a file system of its own for bootd's state.
func (r *rig) disk(size string) string {
	r.t.Helper()
	dir := filepath.Join(r.dir, "s")
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		r.t.Skipf("a tmpfs cannot be mounted here: %v", err)
	}
	r.t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			r.t.Error(err)
		}
	})
	return dir
}

// fill leaves not one byte free in dir, and returns what empties it again.
func (r *rig) fill(dir string) (empty func()) {
	r.t.Helper()
	f, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		r.t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for len(block) > 0 {
		if _, err = f.Write(block); err != nil {
			block = block[:len(block)/2]
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		r.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		r.t.Helper()
		if err := os.Remove(f.Name()); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (p *process) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if code := p.exit(); code != 0 {
		p.t.Errorf("exit %d after SIGTERM:\n%s", code, p.out)
	}
}

// siteCondition waits until the Site says so.
func (r *rig) siteCondition(c *api.Client, status api.ConditionStatus, reason string) {
	r.t.Helper()
	var last *api.Condition
	is := func() bool {
		s, err := api.Get[api.Site](r.t.Context(), c, api.SiteName)
		if err == nil {
			last = s.Status.Conditions.Get("StoreWritable")
		}
		return last != nil && last.Status == status && last.Reason == reason
	}
	if !waittest.Soon(time.Minute, is) {
		r.t.Fatalf("the Site stays %+v, want %s %s\n%s", last, status, reason, r.last.out)
	}
}

// ask gets a path over the socket.
func (r *rig) ask(run, path string) (int, string) {
	r.t.Helper()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(r.dir, run, "bootd.sock"))
	}
	c := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	resp, err := c.Get("http://bootd" + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func layer(name string) *api.Layer {
	l := &api.Layer{Base: api.Base{Metadata: api.Metadata{Name: name}}}
	l.Spec.Butane = "variant: fcos\nversion: 1.5.0\n"
	l.SetDefaults()
	return l
}

// served checks that what is stored can be read, and that nothing is taken.
func (r *rig) served(c *api.Client, words string) {
	r.t.Helper()
	if _, err := api.Get[api.Layer](r.t.Context(), c, "before"); err != nil {
		r.t.Errorf("what was stored before: %v", err)
	}
	_, err := c.Put(r.t.Context(), layer("during"), false)
	var problem *api.Problem
	if !errors.As(err, &problem) || problem.Status != http.StatusInsufficientStorage || !strings.Contains(problem.Detail, words) {
		r.t.Errorf("a change: %v", err)
	}
	if status, body := r.ask("r", "/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, words) {
		r.t.Errorf("/readyz: %d %s", status, body)
	}
	if status, body := r.ask("r", "/v1/blobs"); status != http.StatusOK || !strings.Contains(body, "sha256:") {
		r.t.Errorf("the blobs: %d %s", status, body)
	}
}

// TestFullDisk fills the state directory's file system while bootd runs, and
// before it starts: what is there is served, and everything is again when there
// is room.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	dir := r.disk("400m")
	p := r.start("r")
	p.says("msg=ready")
	c := r.client("r")
	if _, err := c.Put(t.Context(), layer("before"), false); err != nil {
		t.Fatal(err)
	}
	r.siteCondition(c, api.True, "Writable")
	// Etcd may be in the middle of a write; then bootd ends, and systemd starts it.
	empty := r.fill(dir)
	select {
	case <-p.done:
		if p.code != 1 || strings.Contains(p.out.String(), "goroutine ") || !strings.Contains(p.last(), "is full") {
			t.Errorf("exit %d:\n%s", p.code, p.out)
		}
		p = r.start("r")
	case <-time.After(5 * time.Second):
	}
	p.says("the store can only be read")
	r.siteCondition(c, api.False, "NoSpace")
	r.served(c, "MiB free")
	empty()
	r.siteCondition(c, api.True, "Writable")
	// Room for etcd, and none for anything new.
	ballast := filepath.Join(dir, "ballast")
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ballast, make([]byte, int64(st.Bavail)*st.Bsize-48<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	r.siteCondition(c, api.False, "NoSpace")
	r.served(c, "MiB free")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	r.siteCondition(c, api.True, "Writable")

	for _, how := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := p.cmd.Process.Signal(how); err != nil {
			t.Fatal(err)
		}
		p.exit()
		empty = r.fill(dir)
		p = r.start("r")
		p.says("msg=ready")
		r.siteCondition(c, api.False, "NoSpace")
		r.served(c, "MiB free")
		if n := strings.Count(p.out.String(), "the store can only be read"); n != 1 {
			t.Errorf("it says %d times that the store can only be read:\n%s", n, p.out)
		}
		empty()
		p.says("the state directory can be written again")
		r.siteCondition(c, api.True, "Writable")
		if _, err := c.Put(t.Context(), layer(fmt.Sprintf("after-%d", how)), false); err != nil {
			t.Errorf("with room again: %v", err)
		}
		if _, err := api.Get[api.Layer](t.Context(), c, "during"); err == nil {
			t.Error("what was refused is there")
		}
		if _, err := os.Stat(filepath.Join(r.dir, "r", "store-copy")); err == nil {
			t.Error("the copy is left behind")
		}
	}
	p.stop()
}

// TestReadOnlyDisk starts on a file system that cannot be written at all.
func TestReadOnlyDisk(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	dir := r.disk("400m")
	remount := func(flags uintptr) {
		t.Helper()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|flags, "size=400m"); err != nil {
			t.Fatal(err)
		}
	}
	remount(syscall.MS_RDONLY)
	p := r.start("r")
	if code := p.exit(); code != 1 || !strings.Contains(p.last(), "read-only") {
		t.Errorf("with nothing there: exit %d, %s", code, p.last())
	}
	remount(0)
	p = r.start("r")
	p.says("msg=ready")
	c := r.client("r")
	if _, err := c.Put(t.Context(), layer("before"), false); err != nil {
		t.Fatal(err)
	}
	p.stop()
	remount(syscall.MS_RDONLY)
	p = r.start("r")
	p.says("msg=ready")
	second := r.start("r2")
	if code := second.exit(); code != 1 || !strings.Contains(second.last(), "another bootd") {
		t.Errorf("a second one: exit %d, %s", code, second.last())
	}
	r.siteCondition(c, api.False, "ReadOnly")
	r.served(c, "read-only")
	// ip(8) has given bootd mounts of its own, as systemd does: a process that is
	// not told of the mount ends, and the next one sees it.
	remount(0)
	if code := p.exit(); code != 1 || !strings.Contains(p.last(), "must be restarted") {
		t.Errorf("mounted writable elsewhere: exit %d, %s", code, p.last())
	}
	remount(syscall.MS_RDONLY)
	p = r.start("r")
	p.says("msg=ready")
	r.siteCondition(c, api.False, "ReadOnly")
	r.run("nsenter", "-t", strconv.Itoa(p.cmd.Process.Pid), "-m", "mount", "-o", "remount,rw", dir)
	p.says("the state directory can be written again")
	r.siteCondition(c, api.True, "Writable")
	if _, err := c.Put(t.Context(), layer("after"), false); err != nil {
		t.Errorf("writable again: %v", err)
	}
	p.stop()
}
