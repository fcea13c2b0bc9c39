package boot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/dhcp"
	"github.com/rackweft/rackweft/bootd/httpboot"
)

// SecureScript is the boot script for a client that presents the boot URL of the Machine's attempt. Kernel, initrd
// and pointer are sent over TLS, too. Errors are *api.Problem.
func (d *Decider) SecureScript(ctx context.Context, name, key string, peer netip.Addr) (string, error) {
	m, err := d.secured(ctx, name, key, peer)
	if err != nil {
		return "", err
	}
	h, err := d.peers.holder(peer)
	var script httpboot.Script
	if err == nil {
		script, err = d.scripts.script(ctx, m, asking{chain: api.TrustBMC, mac: h.mac, peer: peer})
	}
	var text string
	if err == nil {
		text, err = script.Text()
	}
	if err != nil {
		return "", d.book.refuse(query{question: "script", machine: m, peer: peer}, http.StatusServiceUnavailable, err.Error(), err.Error())
	}
	d.served(ctx, query{"script", m, h.mac, peer})
	return text, nil
}

// SecureScriptFile is the name of the boot script next to the boot loader: iPXE looks for it there.
const SecureScriptFile = "autoexec.ipxe"

// BootURL is the URL of the boot loader from which the Machine's BMC boots it in its open attempt: it is secret.
func (d *Decider) BootURL(m *api.Machine) (string, error) {
	if m.Status.Attempt == nil {
		return "", fmt.Errorf("no BootAttempt of Machine %s", m.Metadata.Name)
	}
	all := d.own.apiFor(m)
	if len(all) == 0 {
		return "", errors.New("bootd has no address on a Subnet of its links: name the Subnet in spec.links")
	}
	loader := loaderOf(m)
	if strings.ContainsAny(loader, "/?#&%") {
		return "", fmt.Errorf("spec.boot.file %q is no plain name", loader)
	}
	return d.scripts.bootURLAt(all[min(len(d.own.advertise), len(all)-1)], m) + "/" + loader, nil
}

// loaderOf is the boot loader of a Machine that boots over HTTPS. Which architecture it has is not known before it asks.
func loaderOf(m *api.Machine) string {
	return cmp.Or(m.Spec.Boot.File, dhcp.DefaultLoader())
}

// SecureLoader reports whether a client may receive a boot loader over TLS: the Machine's own, below its boot URL.
func (d *Decider) SecureLoader(ctx context.Context, name, key, file string, peer netip.Addr) error {
	m, err := d.secured(ctx, name, key, peer)
	if err != nil {
		return err
	}
	if file != loaderOf(m) {
		return problem(http.StatusNotFound, "this is not the Machine's boot loader")
	}
	return nil
}

// served records that a boot has received its script.
func (d *Decider) served(ctx context.Context, who query) {
	d.book.decide(who, "served", "BootAttempt "+strconv.Itoa(who.machine.Status.Attempt.Number)+" is open")
	d.attempts.reached(ctx, who.machine, api.StageScript, func(m *api.Machine) { m.Status.Addresses = []netip.Addr{who.peer} })
}

// secured finds the Machine whose boot URL a client presents, from an address of
// the Machine.
func (d *Decider) secured(ctx context.Context, name, key string, peer netip.Addr) (*api.Machine, error) {
	m, _, reason, err := d.bearer(ctx, name, key, ca.PurposeBoot)
	if err != nil {
		return nil, err
	}
	if reason == "" {
		if err := d.peers.belongs(peer, m); err != nil {
			reason = err.Error()
		}
	} else if m != nil && d.late(m, d.peers.taker("script", peer), key, ca.PurposeBoot) {
		return nil, problem(http.StatusForbidden, strangerText(name))
	}
	if reason != "" {
		return nil, d.book.refuse(query{question: "script", machine: m, peer: peer}, http.StatusForbidden, reason, strangerText(name))
	}
	return m, nil
}

// SecureBlob reports whether a client may receive a blob over TLS: one that presents the boot URL, for what the
// boot server sends to everyone.
func (d *Decider) SecureBlob(ctx context.Context, name, key string, peer netip.Addr, digest api.SHA256) error {
	if _, err := d.secured(ctx, name, key, peer); err != nil {
		return err
	}
	if !d.MayFetch(digest) {
		return problem(http.StatusNotFound, "no Image names this blob")
	}
	return nil
}

// SecurePointer is the pointer of a boot whose script was sent over TLS. Errors are *api.Problem.
func (d *Decider) SecurePointer(ctx context.Context, r httpboot.PointerRequest) (httpboot.Pointer, error) {
	p, err := d.givePointer(ctx, r, true)
	var hold *httpboot.Hold
	var refusal *httpboot.Refusal
	switch {
	case errors.As(err, &hold):
		return p, problem(http.StatusServiceUnavailable, hold.Reason)
	case errors.As(err, &refusal):
		return p, problem(http.StatusForbidden, refusal.Reason)
	}
	return p, err
}
