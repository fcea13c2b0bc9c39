// Package network owns the VNIs and leases of Networks: the Controller allocates them, in flannel's own etcd
// layout, and the Index keeps the peers of every Network in memory, ready to be compiled into HostSpecs.
//
// The layout is that of flannel v0.26.7, whose sources are cited where they matter.
package network
