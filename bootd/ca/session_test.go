package ca

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSessionKeys(t *testing.T) {
	dir := t.TempDir()
	ring := func() *Keyring {
		k, err := LoadKeyring(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	old := ring()
	sealed, err := NewSessionKey(old)
	if err != nil {
		t.Fatal(err)
	}
	keys, _, err := OpenSessionKeys(old, sealed)
	if err != nil {
		t.Fatal(err)
	}
	ab := keys.Key("a", "b")
	if ab != keys.Key("b", "a") || len(ab) != 43 {
		t.Errorf("%q and %q", ab, keys.Key("b", "a"))
	}
	for _, pair := range [][2]string{{"a", "c"}, {"ab", ""}, {"", "ab"[:1]}, {"b", "b"}} {
		if keys.Key(pair[0], pair[1]) == ab {
			t.Errorf("%v has the key of a and b", pair)
		}
	}

	// Another seal key comes first, then the old one goes: no key changes.
	path := filepath.Join(dir, "seal.key")
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const second = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
	if err := os.WriteFile(path, append([]byte(second), first...), 0o600); err != nil {
		t.Fatal(err)
	}
	_, again, err := OpenSessionKeys(ring(), sealed)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(second), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, _, err = OpenSessionKeys(ring(), again)
	if err != nil || keys.Key("a", "b") != ab {
		t.Errorf("%v", err)
	}
	if _, _, err := OpenSessionKeys(ring(), sealed); err == nil {
		t.Error("what the removed key sealed opens")
	}
}
