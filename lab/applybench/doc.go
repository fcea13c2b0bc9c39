// Package applybench holds `make bench-apply`: how long weftctl takes to apply many Machines to bootd, and how
// soon a watcher hears of a change, beside what etcd alone takes for the same. It has a benchmark only.
package applybench
