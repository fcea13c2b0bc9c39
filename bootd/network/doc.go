// Package network owns which VNI a Network has and which host has which lease
// of it: the Controller allocates them, in flannel's own etcd layout, and the
// Index keeps the peers of every Network in memory, ready to be compiled into
// HostSpecs.
//
// What flannel reads and writes is that of v0.26.7; its sources are cited where
// they matter.
package network
