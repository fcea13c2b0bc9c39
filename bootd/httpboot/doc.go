// Package httpboot is the HTTP boot server of the provisioning network. It owns the plain HTTP listener,
// the text of iPXE scripts, and the bounds on what clients can occupy. What a machine boots it asks of a
// Decider, and bytes of Assets; it knows nothing of storage.
//
//	GET /boot.ipxe               first-stage script, the same for all, always there: asks for the next
//	                             one until it gets it
//	GET /ipxe/script             this machine's script
//	GET /ipxe/FILE, /FILE        iPXE binaries, for UEFI HTTP boot
//	GET /blobs/sha256/HEX        kernels, initrds, root file systems
//	GET /ignition/pointer/MACHINE/KEY
//	                             the first Ignition config, which only points to the second; only the
//	                             machine's script has the key
//	GET /healthz
//
// Nothing here is secret and no client is authenticated: anyone on the network can claim any MAC.
//
// Status codes steer retries. Ignition tries again for ever after a 5xx and gives up after a 4xx, so a
// machine that must wait (*Hold) gets 503, and so does one whose Decider fails.
//
// Boot firmware is old and reads HTTP in its own way: every response has a Content-Length, also to HEAD;
// nothing is chunked (edk2#8580); no header is empty, which locks up OVMF (edk2#7443); connections are
// kept alive (edk2#9920). Its Host header lacks the port, so that no URL is made from it: scripts use
// paths, which iPXE resolves against where it got them.
package httpboot
