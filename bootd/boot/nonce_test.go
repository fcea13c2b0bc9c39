package boot

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/httpboot"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

// TestNonceGate: where the level is required, script, pointer and config are for
// whoever sends the value of this attempt, and for nobody else.
func TestNonceGate(t *testing.T) {
	b := newBench(t)
	at := b.lease(hostMAC).String()
	uid := b.Machine(host).Metadata.UID
	right := b.Tokens.Nonce(uid, "try-1")
	if len(right) > 32 || strings.Trim(right, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" {
		t.Fatalf("an AssetTag does not hold %q", right)
	}
	fresh := func() {
		b.d.attempts.takes = newTakes()
		b.Change(host, func(m *api.Machine) {
			m.Spec.Trust.Minimum, m.Status.Conditions = api.TrustNonce, nil
			m.Status.Attempt = testsite.Attempt("try-1", api.StageDHCP)
			m.Status.Attempt.Nonce = &api.Nonce{State: api.NonceWritten}
		})
	}
	ask := func(asset string) (httpboot.Script, error) {
		defer b.Sync()
		c := boots(hostMAC, at)
		c.Query = url.Values{}
		if asset != "-" {
			c.Query.Set("asset", asset)
		}
		return b.d.Script(t.Context(), c)
	}
	for name, asset := range map[string]string{
		"none": "-", "empty": "", "made up": "nonce", "of another attempt": b.Tokens.Nonce(uid, "try-0"), "of another Machine": b.Tokens.Nonce("uid", "try-1"),
		"a prefix": right[:31], "twice": right + right, "another case": strings.ToLower(right), "the config's token": b.fetches(at).Token,
	} {
		t.Run(name, func(t *testing.T) {
			fresh()
			var hold *httpboot.Hold
			if _, err := ask(asset); !errors.As(err, &hold) || !strings.Contains(hold.Reason, "trust level nonce is required (by Machine r1u07), and this boot has reached mac") {
				t.Errorf("the script: %v", err)
			}
			m := b.Machine(host)
			if c := m.Status.Conditions.Get(api.CondTrust); c == nil || c.Reason != "LevelNotReached" || !m.Status.Attempt.Open() {
				t.Errorf("condition %+v, attempt %+v", c, m.Status.Attempt)
			}
			// Nor by the secrets of a script that was given without it.
			if _, err := b.pointer(b.asks(at)); err == nil {
				t.Error("the pointer is given")
			}
			if _, err := b.config(b.fetches(at)); testsite.Status(err) != 503 {
				t.Errorf("the config: %v", err)
			}
		})
	}
	t.Run("of this attempt", func(t *testing.T) {
		fresh()
		for _, asset := range []string{right, right + "  "} { // a boot that starts over; firmware may pad it
			s, err := ask(asset)
			if err != nil {
				t.Fatal(err)
			}
			m := b.Machine(host)
			want := "/ignition/pointer/" + host + "/" + b.d.keys.secret(m, ca.PurposePointer, api.TrustNonce)
			if !slices.ContainsFunc(s.Args, func(a string) bool { return strings.HasSuffix(a, want) }) {
				t.Errorf("arguments %v", s.Args)
			}
			if text := strings.Join(s.Args, " ") + s.Title; strings.Contains(text, right) {
				t.Errorf("the nonce stands in the script: %s", text)
			}
		}
		m := b.Machine(host)
		p := b.asks(at)
		p.Key = b.d.keys.secret(m, ca.PurposePointer, api.TrustNonce)
		pointer, err := b.pointer(p)
		if err != nil {
			t.Fatal(err)
		}
		c := b.fetches(at)
		c.Key, c.Token = b.d.keys.secret(m, ca.PurposeConfigURL, api.TrustNonce), b.d.keys.secret(m, ca.PurposeConfig, api.TrustNonce)
		if !strings.Contains(string(pointer.Config), c.Key) || !strings.Contains(string(pointer.Config), c.Token) {
			t.Errorf("the pointer is %s", pointer.Config)
		}
		if _, err := b.config(c); err != nil {
			t.Fatal(err)
		}
		m = b.Machine(host)
		if a := m.Status.Attempt; a.Trust != api.TrustNonce || a.Nonce.State != api.NonceProved || !strings.Contains(a.TrustWhy, "AssetTag") {
			t.Errorf("%s: %s, nonce %+v", a.Trust, a.TrustWhy, a.Nonce)
		}
		if _, err := ask(right); err == nil {
			t.Error("it is good a second time, after the pointer")
		}
	})
	t.Run("it cannot be written", func(t *testing.T) {
		fresh()
		b.Change(host, func(m *api.Machine) {
			m.Status.Attempt.Nonce = &api.Nonce{State: api.NonceFailed, Message: "the BMC has no AssetTag"}
		})
		if _, err := ask("-"); err == nil || !strings.Contains(err.Error(), "could not be written: the BMC has no AssetTag") {
			t.Errorf("%v", err)
		}
	})
	t.Run("not required, and sent", func(t *testing.T) {
		fresh()
		b.Change(host, func(m *api.Machine) { m.Spec.Trust.Minimum = "" })
		s, err := ask(right)
		if err != nil || !strings.Contains(strings.Join(s.Args, " "), b.d.keys.secret(b.Machine(host), ca.PurposePointer, api.TrustNonce)) {
			t.Errorf("%v, %v", s.Args, err)
		}
	})
}
