// Package store owns bootd's persistent state: every object, DHCP lease and election, in etcd v3.
//
// Etcd runs inside bootd with its data under the state directory, or elsewhere
// when endpoints are configured; one client code path serves both. Objects are
// kept one to a key, /rackweft/v1alpha1/<plural>/<name>, as JSON. Secrets are
// sealed before they reach etcd. Readers that must be fast use the Cache, which
// one watch keeps current.
package store
