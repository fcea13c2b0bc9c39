package guest

import (
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// What Debian's cloud-init makes of the disk.
func TestSeedForCloudInit(t *testing.T) {
	dir := t.TempDir()
	h := New(options(dir))
	g := newGuest(h, "web", uid1)
	if err := os.MkdirAll(g.run, 0o700); err != nil {
		t.Fatal(err)
	}
	p := &api.GuestPart{MAC: "02:00:00:07:01:08", Addresses: []netip.Addr{netip.MustParseAddr("10.7.1.8"), netip.MustParseAddr("fd00:7::8")},
		Config: api.GuestConfig{CloudInit: &api.CloudInitSeed{Domain: "green.dc1.example"}}}
	const userData = "#cloud-config\nruncmd: [[echo, s3cret]]\n"
	contents, err := g.builder.cloudInit.files(p, &qemu.NIC{MTU: 1400}, []byte(userData))
	if err != nil {
		t.Fatal(err)
	}
	disk, err := g.builder.cloudInit.disk(contents)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = disk.Close() }()
	if left, err := os.ReadDir(g.run); err != nil || len(left) > 0 {
		t.Errorf("what the disk was made of is left: %v, %v", left, err)
	}
	image, err := os.Create(filepath.Join(dir, "image"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(image, disk)
	if err := errors.Join(err, image.Close()); err != nil {
		t.Fatal(err)
	}

	cloudInit, err := exec.Command("../../lab/unpack", "cloud-init", "./usr/lib/python3/*").Output()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/python3", "testdata/nocloud.py", filepath.Join(strings.TrimSpace(string(cloudInit)), "usr/lib/python3/dist-packages"), image.Name())
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	var got struct {
		Instance, Hostname, UserData, Mode string
		Rendered                           map[string]string
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got.Instance != uid1 || !strings.Contains(got.Hostname, "web.green.dc1.example") || got.UserData != userData || got.Mode != "net" {
		t.Errorf("cloud-init reads %+v", got)
	}
	for renderer, want := range map[string][]string{
		"netplan": {"macaddress: 02:00:00:07:01:08", "mtu: 1400", "- 10.7.1.8/32", "- fd00:7::8/128", "to: 0.0.0.0/0", "via: 169.254.1.1", "to: ::/0", "via: fe80::1",
			"on-link: true", "- 169.254.1.1", "- green.dc1.example"},
		"networkd": {"MACAddress=02:00:00:07:01:08", "MTUBytes=1400", "Address=10.7.1.8/32", "Address=fd00:7::8/128", "Gateway=169.254.1.1", "Gateway=fe80::1", "DNS=169.254.1.1"},
	} {
		for _, line := range want {
			if !strings.Contains(got.Rendered[renderer], line) {
				t.Errorf("%s has no %s:\n%s", renderer, line, got.Rendered[renderer])
			}
		}
	}
}

// A Guest reads its seed. It waits for its user data before its first start; the
// next does not depend on bootd.
func TestSeed(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	h := newHost(t)
	source := new(configSource)
	h.with = func(o *Options) { o.Config = source.config }
	h.run()
	g := linux(h)
	g.StopTimeout = 1
	g.Config = api.GuestConfig{CloudInit: &api.CloudInitSeed{}}
	h.want(part("web", uid1, g))
	h.wait("it waits for its user data", func() bool {
		s := h.status("guest/web")
		return s.State == api.PartPending && strings.Contains(s.Message, "its user data: nobody is at home")
	})
	source.set(strings.NewReader("#include s3cret"))
	h.wait("it boots", func() bool { return strings.Contains(h.console(uid1), "@up ") })
	read := func(userData string) {
		t.Helper()
		h.must(uid1, "load cdrom isofs", "ok")
		h.must(uid1, "mount iso9660 /dev/vdb /cidata", "ok")
		h.must(uid1, "list /cidata", "meta-data user-data")
		h.must(uid1, "cat /cidata/meta-data", `{"instance-id":"`+uid1+`","local-hostname":"web"}`)
		if got := h.tell(uid1, "cat /cidata/user-data"); got != userData {
			t.Errorf("its user data is %q, want %q", got, userData)
		}
		if got := h.tell(uid1, "touch /dev/vdb"); !strings.Contains(got, "not permitted") {
			t.Errorf("writing to its seed: %s", got)
		}
	}
	read("#include s3cret")
	err := filepath.WalkDir(h.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasSuffix(path, "console.log") {
			return err
		}
		raw, err := os.ReadFile(path)
		if strings.Contains(string(raw), "s3cret") {
			t.Errorf("%s holds the user data", path)
		}
		return err
	})
	h.try(err)

	source.set(nil)
	g.Request = &api.GuestRequest{ID: "1", Verb: api.GuestRestart}
	h.want(part("web", uid1, g))
	h.wait("it boots without bootd", func() bool { return strings.Count(h.console(uid1), "@up ") == 2 })
	if !h.saw("ConfigUnavailable")() {
		t.Error("no event tells that it has no user data")
	}
	read("")
}
