// Package prom registers metrics.
package prom

import "github.com/prometheus/client_golang/prometheus"

// Register registers all of the collectors, or none and returns an error. It
// returns a function that unregisters them. With a nil Registerer it does
// nothing.
func Register(r prometheus.Registerer, all ...prometheus.Collector) (unregister func(), err error) {
	if r == nil {
		return func() {}, nil
	}
	for i, c := range all {
		if err := r.Register(c); err != nil {
			remove(r, all[:i])
			return nil, err
		}
	}
	return func() { remove(r, all) }, nil
}

func remove(r prometheus.Registerer, all []prometheus.Collector) {
	for _, c := range all {
		r.Unregister(c)
	}
}
