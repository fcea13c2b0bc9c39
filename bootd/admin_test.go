package bootd

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/bootd/ca"
)

func TestIssuePerson(t *testing.T) {
	state, out := t.TempDir(), filepath.Join(t.TempDir(), "alice")
	if err := IssuePerson(state, "alice", "viewer", "", out); err == nil || !strings.Contains(err.Error(), "--state-dir") {
		t.Errorf("a state directory without a CA: %v", err)
	}
	if _, err := ca.Open(state); err != nil {
		t.Fatal(err)
	}
	if err := IssuePerson(state, "alice", "operator", "https://198.18.8.1:8443", out); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(out, "alice.crt"), filepath.Join(out, "alice.key"))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := ca.IdentityOf(pair.Leaf); err != nil || id.Name != "alice" || id.Role != "operator" {
		t.Errorf("the certificate is %+v, %v", id, err)
	}
	config, err := os.ReadFile(filepath.Join(out, "weftctl.yaml"))
	if err != nil || !strings.Contains(string(config), "server: https://198.18.8.1:8443\nca: ca.crt\ncert: alice.crt\nkey: alice.key\n") {
		t.Errorf("weftctl.yaml: %v\n%s", err, config)
	}
	if info, err := os.Stat(filepath.Join(out, "alice.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode: %v %v", info.Mode(), err)
	}
	if err := IssuePerson(state, "alice", "operator", "", out); err == nil {
		t.Error("an existing directory was written over")
	}
	if err := IssuePerson(state, "bob", "king", "", out+"2"); err == nil {
		t.Error("role king was issued")
	}
}
