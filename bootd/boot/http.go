package boot

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/httpboot"
	"github.com/rackweft/rackweft/bootd/store"
)

// Script implements httpboot.Decider: the boot script of a Machine whose BootAttempt is open; all others wait and
// receive the reason.
func (d *Decider) Script(ctx context.Context, c httpboot.Client) (httpboot.Script, error) {
	who := query{question: "script", mac: api.MAC(c.MAC.String()), peer: c.Addr}
	m, err := d.asker(c)
	if err != nil {
		return httpboot.Script{}, d.book.held(who, err)
	}
	who.machine = m
	script, err := d.scripts.script(ctx, m, asking{chain: d.scripts.shown(m, c), mac: who.mac, peer: c.Addr})
	if err != nil {
		return httpboot.Script{}, d.book.held(who, err)
	}
	d.served(ctx, who)
	return script, nil
}

// asker returns the registered Machine that a request by MAC comes from. Anyone can claim any MAC: a client without
// an address of the Machine changes nothing of it, and is recorded as a stranger.
func (d *Decider) asker(c httpboot.Client) (*api.Machine, error) {
	m, ok := store.CachedMachineByMAC(d.cache, api.MAC(c.MAC.String()))
	if !ok || isDiscovered(m) {
		return nil, fmt.Errorf("no Machine has MAC %s: apply one to register it", c.MAC)
	}
	return m, d.peers.belongs(c.Addr, m)
}

func contentType(version string) string {
	return "application/vnd.coreos.ignition+json;version=" + version
}

// Fetched is called for every file that was sent completely over TFTP, by name.
func (d *Decider) Fetched(ctx context.Context, peer netip.Addr, file string) {
	who := d.peers.query("tftp", peer)
	d.book.decide(who, "sent "+file, "a boot file")
	d.attempts.reached(ctx, who.machine, api.StageLoader)
}

// FetchedLoader is called for every boot loader that was sent completely over HTTP.
func (d *Decider) FetchedLoader(ctx context.Context, peer netip.Addr, file string) {
	who := d.peers.query("asset", peer)
	d.book.decide(who, "sent "+file, "a boot loader by HTTP boot")
	d.attempts.reached(ctx, who.machine, api.StageLoader)
}

// FetchedBlob is called for every blob that was sent completely over HTTP.
func (d *Decider) FetchedBlob(ctx context.Context, peer netip.Addr, digest api.SHA256) {
	who := d.peers.query("asset", peer)
	m := who.machine
	if m == nil {
		return
	}
	if digest == d.agent.Digest {
		d.book.decide(who, "sent nodeagent", "Ignition installs it")
		return
	}
	_, img, err := profileOf(d.cache, m)
	if err != nil {
		return
	}
	for _, f := range []struct {
		name  string
		stage api.Stage
	}{{api.KernelFile, api.StageKernel}, {api.InitrdFile, api.StageInitrd}, {api.RootfsFile, api.StageRootfs}} {
		if img.Spec.Files[f.name].SHA256 == digest {
			d.book.decide(who, "sent "+f.name, "Image "+img.Metadata.Name+" "+img.Spec.Version)
			d.attempts.reached(ctx, m, f.stage)
		}
	}
}

// MayFetch reports whether the boot server may send a blob without authentication: only those that an Image names,
// and nodeagent.
func (d *Decider) MayFetch(digest api.SHA256) bool {
	if digest == d.agent.Digest {
		return true
	}
	for _, img := range store.CachedList[api.Image](d.cache) {
		for _, f := range img.Spec.Files {
			if f.SHA256 == digest {
				return true
			}
		}
	}
	return false
}
