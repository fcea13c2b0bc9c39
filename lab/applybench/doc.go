// Package applybench holds `make bench-apply`: how long weftctl takes to apply
// many Machines to bootd, and how soon a watcher receives a change, compared
// with etcd alone. It has a benchmark only.
package applybench
