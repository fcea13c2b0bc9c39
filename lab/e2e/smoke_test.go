package e2e

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/lab"
)

func TestSmoke(t *testing.T) {
	if os.Getenv("SMOKE_IMAGE") == "" {
		t.Skip("scratch")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	dir := "/tmp/smoke"
	var machines []lab.MachineConfig
	for _, m := range lab.DefaultMachines() {
		if strings.Contains(os.Getenv("SMOKE_MACHINES"), m.Name) {
			machines = append(machines, m)
		}
	}
	r, err := lab.New(ctx, lab.Config{Name: "smoke", Dir: dir, Fresh: true, Binaries: "../../bin", ImageDir: os.Getenv("SMOKE_IMAGE"), Machines: machines,
		BootdConfig: []byte("advertise: [\"https://198.18.8.1:8443\"]\nlogLevel: debug\n"), SuperviseBootd: true}, slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close(context.Background()) }()
	start := time.Now()
	if err := r.StartBootd(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("bootd up after %s", time.Since(start))
	c, err := api.NewClient(api.ClientConfig{Server: "unix://" + r.BootdSocket()})
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if _, err = api.Get[api.Site](ctx, c, "site"); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("bootd answers after %s", time.Since(start))
	for _, path := range r.Manifests() {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range strings.Split(string(raw), "\n---\n") {
			j, err := yaml.YAMLToJSON([]byte(doc))
			if err != nil {
				t.Fatal(err)
			}
			o, err := api.DecodeObject(j)
			if err != nil {
				t.Fatal(path, err)
			}
			if img, ok := o.(*api.Image); ok {
				for _, f := range img.Spec.Files {
					file, err := os.Open(f.Source)
					if err != nil {
						t.Fatal(err)
					}
					if err := c.PutBlob(ctx, f.SHA256, file); err != nil {
						t.Fatal(err)
					}
				}
			}
			if _, err := c.Put(ctx, o, false); err != nil {
				t.Fatal(path, err)
			}
		}
	}
	t.Logf("applied after %s", time.Since(start))
	for _, m := range r.Machines() {
		if err := r.WaitPhase(ctx, lab.PhaseFrom(c), m.Name(), "Active"); err != nil {
			t.Error(err)
		}
	}
	for _, m := range r.Machines() {
		o, err := api.Get[api.Machine](ctx, c, m.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range o.Status.Attempt.Stages {
			t.Logf("%s %s %s", m.Name(), s.Stage, s.Time.Sub(o.Status.Attempt.Started))
		}
		raw, _ := yaml.Marshal(o)
		t.Log(string(raw))
	}
}
