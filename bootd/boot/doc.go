// Package boot decides for the boot servers: which address, file, script, Ignition pointer and config a machine
// receives, and whether it may join. Every answer follows from the current objects and is recorded with its
// reason, so that `weftctl explain machine` can show it.
//
// A Machine is recognized by its MAC, which anyone on the provisioning network can forge. So nothing secret is
// sent before the Machine has presented the token of a BootAttempt that bootd opened, over TLS, from an address
// leased to it.
package boot
