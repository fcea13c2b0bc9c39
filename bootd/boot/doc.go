// Package boot answers the boot servers: which address, which file, which script, which Ignition pointer and
// config, and whether a machine may join. Every answer follows from the current objects and is recorded with its
// reason, so that `weftctl explain machine` can show it.
//
// A Machine is known by its MAC, which anyone on the provisioning network can forge. So no secret is sent before
// the Machine has presented the token of a BootAttempt that bootd opened, over TLS, from an address leased to it.
package boot
