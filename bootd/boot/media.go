package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/trust"
)

// Medium is what the image in a Machine's virtual CD drive has for a BootAttempt, besides a boot loader.
type Medium struct {
	Kernel, Initrd api.SHA256 // blobs; an Image may have no initrd
	// Authority is a further initrd, with the Site's CA.
	Authority []byte
	// Config is GRUB's.
	Config []byte
}

// Names of the files in an image. GRUB ignores their case.
const (
	MediumKernel    = "KERNEL.IMG"
	MediumInitrd    = "INITRD.IMG"
	MediumAuthority = "SITE_CA.IMG"
)

// MediumFile is the name of the image, the last part of its URL: some BMCs take nothing that does not end in .iso.
const MediumFile = "boot.iso"

// MediaURL is the URL from which the Machine's BMC fetches the image that boots it in its attempt: it is secret.
func (d *Decider) MediaURL(m *api.Machine) (string, error) {
	if m.Status.Attempt == nil {
		return "", fmt.Errorf("no BootAttempt of Machine %s", m.Metadata.Name)
	}
	base, err := d.own.towardsBMC(m)
	if err != nil {
		return "", err
	}
	return base + "/v1/media/" + m.Metadata.Name + "/" + d.keys.secret(m, ca.PurposeMedia, api.TrustBMC) + "/" + MediumFile, nil
}

// Medium is what boots the Machine to whose BMC the key was given. The BMC may ask from any address. Errors are *api.Problem.
func (d *Decider) Medium(ctx context.Context, name, key string, peer netip.Addr) (Medium, error) {
	m, _, reason, err := d.bearer(ctx, name, key, ca.PurposeMedia)
	who := query{question: "image", machine: m, peer: peer}
	switch {
	case err != nil:
		return Medium{}, err
	case reason != "" && m != nil && d.late(m, d.peers.taker("image", peer), key, ca.PurposeMedia):
		return Medium{}, problem(http.StatusForbidden, strangerText(name))
	case reason != "":
		return Medium{}, d.book.refuse(who, http.StatusForbidden, reason, strangerText(name))
	}
	medium, err := d.scripts.medium(m)
	if err != nil {
		return Medium{}, d.book.refuse(who, http.StatusServiceUnavailable, err.Error(), err.Error())
	}
	medium.Authority = initrdWith("etc/pki/tls/certs/rackweft-site-ca.pem", d.ca.CertPEM())
	// A BMC may look at the image when it is inserted, before the server has power.
	if a := m.Status.Attempt; a.Reached(api.StagePowerOn) && !a.Reached(api.StageLoader) {
		d.book.decide(who, "served", "its BMC has the image of this BootAttempt")
		d.attempts.reached(ctx, m, api.StageLoader)
	}
	return medium, nil
}

// medium returns what the image has, or why there is none.
func (sc *scripts) medium(m *api.Machine) (Medium, error) {
	if m.Spec.State != api.StateActive {
		return Medium{}, fmt.Errorf("the Machine %s has state %s: nothing is booted", m.Metadata.Name, m.Spec.State)
	}
	if !machine.Covers(m, time.Now()) {
		return Medium{}, errors.New(unsolicited(m))
	}
	p, img, err := profileOf(sc.cache, m)
	if err != nil {
		return Medium{}, err
	}
	if err := bootable(p, img); err != nil {
		return Medium{}, err
	}
	servers := sc.own.servers(m)
	if len(servers) == 0 {
		return Medium{}, errors.New("bootd has no address on a Subnet of its links: name the Subnet in spec.links")
	}
	b := asking{chain: api.TrustBMC}
	if macs := m.MACs(); len(macs) > 0 {
		b.mac = macs[0]
	}
	if v := sc.attempts.proved(m, netip.Addr{}, trust.Script, b.chain); !v.OK() {
		return Medium{}, errors.New(v.Missing)
	}
	medium := Medium{Kernel: img.Spec.Files[api.KernelFile].SHA256, Initrd: img.Spec.Files[api.InitrdFile].SHA256}
	medium.Config = grubConfig(medium.Initrd != "", sc.arguments(m, p, img, servers[0], b))
	return medium, nil
}

// grubConfig boots the kernel of the image at once.
func grubConfig(initrd bool, arguments []string) []byte {
	var b bytes.Buffer
	b.WriteString("linux /" + MediumKernel)
	for _, a := range arguments {
		// Between single quotes only the single quote is special to GRUB.
		b.WriteString(" '" + strings.ReplaceAll(a, "'", `'\''`) + "'")
	}
	b.WriteString("\ninitrd")
	if initrd {
		b.WriteString(" /" + MediumInitrd)
	}
	b.WriteString(" /" + MediumAuthority + "\nboot\n")
	return b.Bytes()
}

// initrdWith is an initrd with one file. The kernel unpacks one after the other
// (https://docs.kernel.org/driver-api/early-userspace/buffer-format.html).
func initrdWith(path string, content []byte) []byte {
	var b bytes.Buffer
	pad := func() { b.Write(make([]byte, (4-b.Len()%4)%4)) }
	inode := 0
	add := func(name string, mode int, content []byte) {
		inode++
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		pad()
		b.Write(content)
		pad()
	}
	for i, c := range path {
		if c == '/' {
			add(path[:i], 0o40755, nil)
		}
	}
	add(path, 0o100644, content)
	add("TRAILER!!!", 0, nil)
	return b.Bytes()
}
