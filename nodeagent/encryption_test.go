package nodeagent

import (
	"context"
	"crypto/ecdh"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/curve25519"

	"github.com/rackweft/rackweft/api"
)

func TestWireGuardKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wireguard.key")
	first, err := wireGuardKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := wireGuardKey(path); err != nil || !again.Equal(first) {
		t.Errorf("the key is another after a restart (%v)", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its file is %v, %v", info.Mode(), err)
	}
	public, err := curve25519.X25519(first.Bytes(), curve25519.Basepoint)
	if err != nil || publicKey(first) != base64.StdEncoding.EncodeToString(public) {
		t.Errorf("the public key is %s (%v)", publicKey(first), err)
	}
	for _, text := range []string{"", "x", strings.Replace(spelled, "=", " =", 1), "\n" + spelled, strings.Repeat("A", 44), base64.StdEncoding.EncodeToString([]byte("short")), strings.Repeat("//", 21) + "/="} {
		writeTest(t, path, text)
		key, err := wireGuardKey(path)
		if err == nil || key == nil || key.Equal(first) || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%q in its file: %v", text, err)
		}
		if kept, err := wireGuardKey(path); err != nil || !kept.Equal(key) {
			t.Errorf("after %q the new key is not kept: %v", text, err)
		}
	}
	writeTest(t, path, spelled)
	if key, err := wireGuardKey(path); err != nil || base64.StdEncoding.EncodeToString(key.Bytes()) != spelled {
		t.Errorf("%s in its file: %v", spelled, err)
	}
	// A disk that takes nothing: there is a key all the same.
	if key, err := wireGuardKey(filepath.Join(path, "no", "directory")); key == nil || err == nil {
		t.Errorf("%v, %v", key, err)
	}
}

// spelled is a private key as wg(8) prints it.
const spelled = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="

func FuzzParseWireGuardKey(f *testing.F) {
	f.Add("")
	f.Add(spelled + "\n")
	f.Add(strings.Replace(spelled, "k=", "l=", 1)) // a stray bit
	f.Add(spelled[:20] + "\r\n" + spelled[20:])
	f.Fuzz(func(t *testing.T, text string) {
		if key, err := parseWireGuardKey(text); err == nil && base64.StdEncoding.EncodeToString(key.Bytes()) != strings.TrimSuffix(text, "\n") {
			t.Errorf("%q is read as %x", text, key.Bytes())
		}
	})
}

// recordingEncrypter keeps what it is asked for, and fails where it is told to.
type recordingEncrypter struct {
	mu   sync.Mutex
	keys map[string]bool
	asks []api.Underlay
	err  error
}

func (e *recordingEncrypter) Encrypt(_ context.Context, key *ecdh.PrivateKey, u api.Underlay) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.keys[publicKey(key)] = true
	e.asks = append(e.asks, u)
	return e.err
}

func (e *recordingEncrypter) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.err = err
}

// The host tells its public key, and what becomes of its encryption; nothing
// ever tells the private one.
func TestAgentEncrypts(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	h := newHost(t, b)
	base, err := api.EncodePart(api.BasePart{UID: testUID, Underlay: api.Underlay{Encryption: &api.Encryption{Port: 51820}}})
	if err != nil {
		t.Fatal(err)
	}
	b.parts[api.PartBase] = base
	e := &recordingEncrypter{keys: map[string]bool{}, err: errors.New("the kernel has no WireGuard")}
	log, stop := runAgentWith(t, h, func(o *Options) { o.Encrypter = e })
	b.waitFor("base is pending", func() bool {
		p := b.status.Parts[api.PartBase]
		return p.State == api.PartPending && strings.Contains(p.Message, "the kernel has no WireGuard")
	})
	e.fail(nil)
	b.waitFor("base is applied", applied(b, api.PartBase))
	stop()
	raw, err := os.ReadFile(filepath.Join(h.state, "wireguard.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := parseWireGuardKey(string(raw))
	if err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	told := b.status.WireGuardKey
	b.mu.Unlock()
	if told != publicKey(key) || len(e.keys) != 1 || !e.keys[told] {
		t.Errorf("told is %q, encrypted with %v, kept %q", told, e.keys, publicKey(key))
	}
	status, err := os.ReadFile(filepath.Join(h.run, "status.json"))
	if err != nil || strings.Contains(string(status), strings.TrimSpace(string(raw))) || log.has(strings.TrimSpace(string(raw))) {
		t.Errorf("the private key is in the status or the log (%v)", err)
	}

	// An agent that cannot encrypt says so, with the same key.
	runAgent(t, h)
	b.waitFor("base is pending again", func() bool {
		p := b.status.Parts[api.PartBase]
		return p.State == api.PartPending && strings.Contains(p.Message, "cannot encrypt") && b.status.WireGuardKey == publicKey(key)
	})
}
