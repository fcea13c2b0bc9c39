package bootd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/command"
)

// command runs bootd with a verb on the rig's state.
func (r *rig) command(args ...string) string {
	r.t.Helper()
	out, err := command.Output(exec.Command(r.exe, append(args, "--config", r.conf, "--state-dir", filepath.Join(r.dir, "s"))...))
	if err != nil {
		r.t.Fatalf("bootd %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

func digestOf(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestPartsOfASite takes each part of a Site away, or puts another Site's in its
// place: bootd does not start, says which one it is and makes nothing new.
// Putting it back mends it, and so does giving it up.
func TestPartsOfASite(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	state := filepath.Join(r.dir, "s")
	other := filepath.Join(r.dir, "other")
	p := r.start("r", "--state-dir", other)
	p.says("msg=ready")
	p.stop()
	p = r.start("r")
	p.says("msg=ready")
	if _, err := r.client("r").Put(t.Context(), layer("before"), false); err != nil {
		t.Fatal(err)
	}
	p.stop()

	for _, c := range []struct{ file, part, lost, foreign string }{
		{"ca", "ca", "the Site's CA is missing", "the CA is that of another Site"},
		{"seal.key", "seal-key", "the seal key is missing", "the seal key is another Site's"},
		{"etcd", "store", "the store is missing", "the store is that of another Site"},
	} {
		path, aside := filepath.Join(state, c.file), filepath.Join(r.dir, "aside")
		if err := os.Rename(path, aside); err != nil {
			t.Fatal(err)
		}
		refused := func(words string) {
			t.Helper()
			p := r.start("r")
			if code := p.exit(); code != configFault || !strings.HasPrefix(p.last(), "bootd: "+words) || !strings.Contains(p.last(), "bootd recreate "+c.part) {
				t.Errorf("exit %d, want %d; last line\n  %s\nwant\n  bootd: %s", code, configFault, p.last(), words)
			}
		}
		refused(c.lost)
		if _, err := os.Stat(path); err == nil {
			t.Errorf("a new %s was made", c.part)
		}
		r.run("cp", "-a", filepath.Join(other, c.file), path)
		refused(c.foreign)
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(aside, path); err != nil {
			t.Fatal(err)
		}
		p := r.start("r")
		p.says("msg=ready")
		if _, err := api.Get[api.Layer](t.Context(), r.client("r"), "before"); err != nil {
			t.Errorf("with the %s back: %v", c.part, err)
		}
		p.stop()
	}

	// A seal key that is replaced in order: the new one first, then it alone.
	old := digestOf(t, filepath.Join(state, "seal.key"))
	fresh := "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n"
	for _, keys := range []string{fresh + old, fresh} {
		if err := os.WriteFile(filepath.Join(state, "seal.key"), []byte(keys), 0o600); err != nil {
			t.Fatal(err)
		}
		p := r.start("r")
		p.says("msg=ready")
		p.stop()
	}

	for _, c := range []struct{ file, part string }{{"ca/ca.crt", "ca"}, {"seal.key", "seal-key"}, {"etcd/member/wal", "store"}} {
		was := filepath.Join(state, strings.SplitN(c.file, "/", 2)[0])
		if c.part != "store" {
			before := digestOf(t, filepath.Join(state, c.file))
			if err := os.RemoveAll(was); err != nil {
				t.Fatal(err)
			}
			r.command("recreate", c.part)
			p := r.start("r")
			p.says("msg=ready")
			if digestOf(t, filepath.Join(state, c.file)) == before {
				t.Errorf("the %s is the old one", c.part)
			}
			if _, err := api.Get[api.Layer](t.Context(), r.client("r"), "before"); err != nil {
				t.Errorf("with another %s: %v", c.part, err)
			}
			if err := r.get(filepath.Join(state, "admin"), "198.18.0.1"); err != nil {
				t.Errorf("the administrator does not come in with another %s: %v", c.part, err)
			}
			p.stop()
			continue
		}
		if out := r.command("recreate", c.part); !strings.Contains(out, "etcd.given-up-") {
			t.Errorf("it does not say where the old store is: %s", out)
		}
		p := r.start("r")
		p.says("msg=ready")
		if _, err := api.Get[api.Layer](t.Context(), r.client("r"), "before"); err == nil {
			t.Error("the new store is the old one")
		}
		p.stop()
	}
	p = r.start("r")
	p.says("msg=ready")
	p.stop()

	// A store that is there and damaged: systemd may try again, and each time the
	// last line says what to do.
	db := filepath.Join(state, "etcd", "member", "snap", "db")
	if err := os.Truncate(db, 10_000); err != nil {
		t.Fatal(err)
	}
	p = r.start("r")
	if code := p.exit(); code != 1 || !strings.HasPrefix(p.last(), "bootd: the store is damaged: check "+db+": it is cut short") ||
		!strings.Contains(p.last(), "bootd restore FILE --state-dir "+state) || strings.Contains(p.out.String(), "goroutine ") {
		t.Errorf("exit %d:\n%s", code, p.out)
	}
}
