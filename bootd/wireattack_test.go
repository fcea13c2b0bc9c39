package bootd_test

import (
	"crypto/x509"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
)

// wireAttack is what somebody does who sees and rewrites the traffic of a
// Machine that boots.
type wireAttack struct {
	name    string
	trust   api.TrustLevel // that the Machine requires
	play    func(t *testing.T, real *party, w *wire)
	secrets int32 // that get out
}

// TestWire: bootd as it is run, a Machine that boots, and somebody between them
// by ARP or by DHCP. What gets out at each level is what docs/security.md says.
func TestWire(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	attacks := []wireAttack{
		{name: "token, it listens", trust: api.TrustToken, play: overheard},
		{name: "token, it uses what it reads first", trust: api.TrustToken, play: usedFirst, secrets: 1},
		{name: "token, it rewrites", trust: api.TrustToken, play: rewritten, secrets: 1},
		{name: "token, it answers DHCP first", trust: api.TrustToken, play: rogue, secrets: 1},
		{name: "nonce, it listens", trust: api.TrustNonce, play: overheard},
		{name: "nonce, it uses what it reads first", trust: api.TrustNonce, play: usedFirst, secrets: 1},
		{name: "nonce, it rewrites", trust: api.TrustNonce, play: rewritten, secrets: 1},
		{name: "nonce, it answers DHCP first", trust: api.TrustNonce, play: rogue, secrets: 1},
		{name: "bmc, it listens", trust: api.TrustBMC, play: passedOn},
		{name: "bmc, it rewrites", trust: api.TrustBMC, play: refusedByTLS},
		{name: "bmc, it answers DHCP first", trust: api.TrustBMC, play: refusedByAddress},
	}
	out := newTally(t, len(attacks), map[api.TrustLevel]int32{api.TrustToken: 3, api.TrustNonce: 3, api.TrustBMC: 0})
	var all sync.WaitGroup
	for n, c := range attacks {
		v := s.victim(t, n+1, c.trust)
		all.Go(func() {
			t.Run(c.name, func(t *testing.T) {
				v.t = t
				v.poweredOn(1)
				w := newWire(v)
				c.play(t, v.party(v.mac), w)
				got := w.back.secrets.Load()
				if got != c.secrets || strings.Contains(w.heard(), vault) && got == 0 {
					t.Errorf("%d configs with Secrets got out, want %d", got, c.secrets)
				}
				out.add(c.trust, got)
			})
		})
	}
	all.Wait()
}

// overheard: everything is passed on as it is, and read.
func overheard(t *testing.T, real *party, w *wire) {
	var l loot
	tag := real.v.bmc.AssetTag()
	real.lease()
	w.inTheMiddle(real)
	w.listen()
	real.script(&l, tag)
	real.goOn(&l)
	heard := w.heard()
	for what, text := range map[string]string{"the nonce": tag, "the pointer's URL": strings.TrimPrefix(l.pointer, "http://"+bootdAddress+":8080"), "the config's URL": l.config, "the config's token": l.token} {
		if !strings.Contains(heard, text) {
			t.Errorf("it has not read %s: then this test shows nothing", what)
		}
	}
	if strings.Contains(heard, vault) || strings.Contains(heard, l.join) {
		t.Error("it has read what is given over TLS")
	}
	real.v.untouched()
}

// usedFirst: it takes the config with what it has read, before the Machine does.
func usedFirst(t *testing.T, real *party, w *wire) {
	var l loot
	v := real.v
	tag := v.bmc.AssetTag()
	real.lease()
	w.inTheMiddle(real)
	w.rewrite = w.takesFirst
	w.listen()
	real.script(&l, tag)
	if status := real.fetchPointer(&l); status != http.StatusServiceUnavailable {
		t.Errorf("the Machine's pointer: %d", status)
	}
	m := v.wait("BootAttempt 1 failed", func(m *api.Machine) bool { return !m.Status.Attempt.Open() || m.Status.Attempt.Number > 1 })
	if cond := m.Status.Conditions.Get(api.CondTrust); cond == nil || cond.Reason != "SecondTaker" || v.events("SecondTaker") == 0 {
		t.Errorf("it is not seen: %+v", cond)
	}
	if cert, status := w.back.join(w.stolen()); cert != nil || status != http.StatusForbidden {
		t.Errorf("it joins with what it has: %d", status)
	}
}

// rewritten: the Machine trusts the CA that the attacker writes into its pointer,
// and boots into the attacker's hands; to bootd the attacker is the Machine.
func rewritten(t *testing.T, real *party, w *wire) {
	tag := real.v.bmc.AssetTag()
	real.lease()
	w.inTheMiddle(real)
	unseen(t, real, w, tag)
}

// rogue: the same, by the boot server that its own DHCP names.
func rogue(t *testing.T, real *party, w *wire) {
	tag := real.v.bmc.AssetTag()
	w.byDHCP()
	real.leaseFrom(w.at)
	unseen(t, real, w, tag)
}

// unseen boots the Machine from the attacker, and shows that the attacker becomes
// the Machine's host without a trace.
func unseen(t *testing.T, real *party, w *wire, tag string) {
	t.Helper()
	var l loot
	w.endsTLS, w.rewrite = true, w.inItsPlace
	w.listen()
	real.script(&l, tag)
	if status := real.fetchPointer(&l); status != http.StatusOK {
		t.Fatalf("the Machine's pointer: %d", status)
	}
	if status := real.fetchConfig(&l); status != http.StatusOK {
		t.Fatalf("the Machine's config: %d", status)
	}
	w.back.active(w.stolen())
	real.v.untouched()
}

// bootURL is what the Machine's BMC is given, made here of bootd's own key.
func (v *victim) bootURL() string {
	v.t.Helper()
	keys, err := ca.LoadKeyring(filepath.Join(v.dir, "s"), "")
	if err != nil {
		v.t.Fatal(err)
	}
	m := v.machine()
	key := ca.NewTokens(keys).Token(ca.PurposeBoot.At(string(api.TrustBMC)), m.Metadata.UID, m.Status.Attempt.ID)
	return "https://" + bootdAddress + ":8443/v1/boot/" + v.name + "/" + key
}

// secureScript asks for the script as firmware with the Site's CA enrolled does.
func (p *party) secureScript(l *loot) (status int, err error) {
	p.v.t.Helper()
	status, text, err := p.try(p.v.roots, "GET", p.v.bootURL(), "", "")
	if status == http.StatusOK {
		l.pointer = pointerIn(text)
	}
	return status, err
}

// secureBoot goes from the boot URL to Active.
func (p *party) secureBoot() {
	p.v.t.Helper()
	var l loot
	if status, err := p.secureScript(&l); err != nil || status != http.StatusOK || !strings.HasPrefix(l.pointer, "https://") {
		p.v.t.Fatalf("the script over TLS: %d, %v; pointer %s", status, err, l.pointer)
	}
	p.goOn(&l)
	if a := p.v.machine().Status.Attempt; a.Trust != api.TrustBMC {
		p.v.t.Errorf("the Machine has reached %s: %s", a.Trust, a.TrustWhy)
	}
}

// passedOn: TLS is all that there is, and it is passed on as it is.
func passedOn(t *testing.T, real *party, w *wire) {
	real.lease()
	w.inTheMiddle(real)
	w.listen()
	real.secureBoot()
	if heard := w.heard(); heard != "" {
		t.Errorf("it has read %s", heard)
	}
	real.v.untouched()
}

// refusedByTLS: the Machine does not speak with the attacker, and bootd does not
// give over plain HTTP what needs TLS. When the attacker is gone, it boots.
func refusedByTLS(t *testing.T, real *party, w *wire) {
	v := real.v
	real.lease()
	w.inTheMiddle(real)
	w.endsTLS, w.rewrite = true, w.inItsPlace
	w.listen()
	var unknown x509.UnknownAuthorityError
	if status, err := real.secureScript(new(loot)); !errors.As(err, &unknown) {
		t.Errorf("the Machine takes the attacker for bootd: %d, %v", status, err)
	}
	if strings.Contains(w.heard(), "/v1/boot/") || !w.brokenOff() {
		t.Errorf("it has read %q; its TLS server says %q", w.heard(), w.broken())
	}
	w.back.asks("", "guessed")
	v.held("trust level bmc is required (by Machine " + v.name + "), and this boot has reached mac: it did not present over TLS the boot URL of this BootAttempt")
	w.end()
	v.run("ip", "-n", real.ns, "neigh", "flush", "dev", "eth0")
	v.run("ip", "-n", v.ns, "neigh", "flush", "to", real.address.String(), "dev", "br0")
	real.secureBoot()
}

// refusedByAddress: the boot URL is of no use at an address that bootd has not
// given.
func refusedByAddress(t *testing.T, real *party, w *wire) {
	w.byDHCP()
	real.leaseFrom(w.at)
	w.endsTLS, w.rewrite = true, w.inItsPlace
	w.listen()
	if status, err := real.secureScript(new(loot)); err != nil || status != http.StatusForbidden {
		t.Errorf("the script over TLS: %d, %v", status, err)
	}
	real.asks("", "guessed") // of the attacker, who asks bootd as the Machine
	real.v.held(real.address.String()+" is not leased by this bootd", "trust level bmc is required")
}

// held checks that explain says why the open BootAttempt does not go on.
func (v *victim) held(why ...string) {
	v.t.Helper()
	x, err := v.c.Explain(v.t.Context(), v.name)
	if err != nil {
		v.t.Fatal(err)
	}
	text := strings.Join(x.Summary, "\n")
	for _, d := range x.Decisions {
		text += "\n" + d.Question + ": " + d.Answer + ": " + d.Reason
	}
	for _, w := range why {
		if !strings.Contains(text, w) {
			v.t.Errorf("explain does not say %q:\n%s", w, text)
		}
	}
	if !v.machine().Status.Attempt.Open() {
		v.t.Error("the BootAttempt has failed")
	}
}
