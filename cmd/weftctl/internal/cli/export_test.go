package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

// exportLines writes an export: lines, and data after those that have some.
func exportLines(w http.ResponseWriter, list ...api.ExportLine) {
	for _, l := range list {
		_ = json.NewEncoder(w).Encode(l)
		if l.Data != nil {
			_, _ = w.Write([]byte(strings.Repeat("x", l.Data.Length)))
		}
	}
}

func TestGuestExport(t *testing.T) {
	b := newBootd(t)
	g := &api.Guest{Spec: api.GuestSpec{Network: "blue", Image: "debian", CPUs: 1, Memory: api.Bytes(1 << 30),
		Disks: []api.Disk{{Name: "root", Size: api.Bytes(1 << 30)}, {Name: "etcd", Size: api.Bytes(1 << 30)}}}}
	g.Metadata.Name = "web"
	b.store(g)
	root := api.ExportLine{Disk: &api.ExportDisk{Name: "root", Format: "raw", Size: 10, Consistency: api.ConsistentFrozen}}
	etcd := api.ExportLine{Disk: &api.ExportDisk{Name: "etcd", Format: "raw", Size: 4, Consistency: api.ConsistentCrash}}
	data := func(offset int64, n int) api.ExportLine {
		return api.ExportLine{Data: &api.ExportData{Offset: offset, Length: n}}
	}
	end := api.ExportLine{End: true}
	dir := t.TempDir()
	file := filepath.Join(dir, "root.img")
	export := func(answer []api.ExportLine, args ...string) result {
		b.export = func(w http.ResponseWriter) { exportLines(w, answer...) }
		return b.run(t, "", append([]string{"guest", "export", "web"}, args...)...)
	}
	empty := func() {
		t.Helper()
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%v is left: %v", left, err)
		}
	}
	for name, c := range map[string]struct {
		answer []api.ExportLine
		want   string
	}{
		"cut off":         {[]api.ExportLine{root, data(0, 4)}, "interrupted: nothing is kept"},
		"a fault":         {[]api.ExportLine{root, data(0, 4), {Fault: "the disk is full"}}, "the disk is full"},
		"beyond its end":  {[]api.ExportLine{root, data(8, 4), end}, "invalid export"},
		"data of no disk": {[]api.ExportLine{data(0, 4), end}, "invalid export"},
		"nothing":         {[]api.ExportLine{end}, "invalid export"},
		"a path":          {[]api.ExportLine{{Disk: &api.ExportDisk{Name: "../x"}}, end}, "../x"},
		"two of one name": {[]api.ExportLine{root, root, end}, "would both be"},
	} {
		r := export(c.answer, "--disk", "root", "-o", file)
		if r.code != 1 || !strings.Contains(r.err, c.want) {
			t.Errorf("%s: %d %s", name, r.code, r.err)
		}
		empty()
	}
	export(nil, "-o", file).want(t, 1, "", "give --disk")
	export(nil).want(t, 2, "", "-o FILE")
	export(nil, "-o", file, "--format", "vmdk").want(t, 2, "", "qcow2 or raw")
	export(nil, "-o", file, "--rate", "fast").want(t, 2, "", "--rate")

	whole := []api.ExportLine{{Progress: "copying"}, root, data(6, 4), etcd, data(0, 2), end}
	export(whole, "-o", dir, "--format", "raw").want(t, 0, dir+"/root.raw: disk root, its file systems frozen\n"+dir+"/etcd.raw: disk etcd, crash-consistent\n")
	if raw, err := os.ReadFile(filepath.Join(dir, "root.raw")); err != nil || string(raw) != "\x00\x00\x00\x00\x00\x00xxxx" {
		t.Errorf("the file holds %q: %v", raw, err)
	}
	export(whole, "-o", filepath.Join(dir, "root.raw"), "--disk", "root").want(t, 1, "", "exists already")
	if r := b.run(t, "", "__complete", "guest", "export", "web", "--disk", ""); !strings.Contains(r.out, "root\netcd\n") {
		t.Errorf("completion says %q", r.out)
	}
}

// Whatever comes, nothing is written but below the directory, and no more than
// it says.
func FuzzExport(f *testing.F) {
	f.Add([]byte("{\"disk\":{\"name\":\"root\",\"format\":\"raw\",\"size\":10}}\n{\"data\":{\"offset\":6,\"length\":4}}\nxxxx{\"end\":true}\n"))
	f.Add([]byte("{\"fault\":\"full\"}\n"))
	f.Add([]byte("{\"data\":{\"offset\":-1,\"length\":4}}\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := t.TempDir()
		r := exportReader{app: &app{out: terminal.New(io.Discard, os.Getenv), err: terminal.New(io.Discard, os.Getenv)}, in: bufio.NewReader(bytes.NewReader(raw)),
			path: func(d *api.ExportDisk) string { return filepath.Join(dir, d.Name+"."+d.Format) }}
		err := r.receive()
		left, dirErr := os.ReadDir(dir)
		if dirErr != nil || err != nil && len(left) > 0 || err == nil && len(left) != len(r.files) {
			t.Errorf("%v: %v, %v", err, left, dirErr)
		}
	})
}
