package prom

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func gauge(name string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name})
}

func count(t *testing.T, r *prometheus.Registry) int {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return len(families)
}

func TestRegister(t *testing.T) {
	r := prometheus.NewRegistry()
	unregister, err := Register(r, gauge("a"), gauge("b"))
	if err != nil {
		t.Fatal(err)
	}
	if n := count(t, r); n != 2 {
		t.Errorf("%d metrics are registered, want 2", n)
	}
	if _, err := Register(r, gauge("c"), gauge("a")); err == nil {
		t.Error("a second metric of one name is registered")
	}
	if n := count(t, r); n != 2 {
		t.Errorf("%d metrics are registered after a refusal, want the 2 from before", n)
	}
	unregister()
	if n := count(t, r); n != 0 {
		t.Errorf("%d metrics are left", n)
	}
}

func TestRegisterNowhere(t *testing.T) {
	unregister, err := Register(nil, gauge("a"))
	if err != nil {
		t.Fatal(err)
	}
	unregister()
}
