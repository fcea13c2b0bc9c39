package ca

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func keyring(t testing.TB, stateDir, credentials string) *Keyring {
	t.Helper()
	k, err := LoadKeyring(stateDir, credentials)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func keyLine(b byte) string {
	return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) + "\n"
}

func write(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func TestSealAndOpen(t *testing.T) {
	k := keyring(t, t.TempDir(), "")
	plain, aad := []byte("swordfish"), []byte("secrets/r1-bmc/uid/password")
	sealed, err := k.Seal(plain, aad)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, plain) {
		t.Error("the plaintext shows")
	}
	if got, err := k.Open(sealed, aad); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("%q %v", got, err)
	}
	if again, _ := k.Seal(plain, aad); bytes.Equal(again, sealed) {
		t.Error("sealed twice to the same bytes")
	}
	if _, err := k.Open(sealed, []byte("secrets/r1-bmc/uid/username")); !errors.Is(err, ErrTampered) {
		t.Errorf("another aad: %v", err)
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 0x40
		if _, err := k.Open(bad, aad); !errors.Is(err, ErrTampered) && !errors.Is(err, ErrUnknownKey) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	for n := range sealed {
		if _, err := k.Open(sealed[:n], aad); err == nil {
			t.Errorf("cut to %d bytes: opened", n)
		}
	}
	if empty, err := k.Seal(nil, nil); err != nil {
		t.Error(err)
	} else if got, err := k.Open(empty, nil); err != nil || len(got) != 0 {
		t.Errorf("nothing: %q %v", got, err)
	}
}

func TestKeyRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "seal.key")
	write(t, path, keyLine(1), 0o600)
	old := keyring(t, dir, "")
	sealed, err := old.Seal([]byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	token := NewTokens(old).Token(PurposeJoin, "m", "a")

	write(t, path, "# since 2026-11\n"+keyLine(2)+"\n"+keyLine(1), 0o600)
	both := keyring(t, dir, "")
	if got, err := both.Open(sealed, nil); err != nil || string(got) != "x" {
		t.Errorf("an old value with both keys: %q %v", got, err)
	}
	if !NewTokens(both).Verify(token, PurposeJoin, "m", "a") {
		t.Error("a token from before the rotation is refused")
	}
	fresh, err := both.Seal([]byte("y"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Open(fresh, nil); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("the new key seals: %v", err)
	}
	if old.KeyID() == both.KeyID() || old.Digest([]byte("x")) == both.Digest([]byte("x")) {
		t.Error("two keys have the same id or digest")
	}

	write(t, path, keyLine(2), 0o600)
	if _, err := keyring(t, dir, "").Open(sealed, nil); !errors.Is(err, ErrUnknownKey) || !strings.Contains(err.Error(), old.KeyID()) {
		t.Errorf("without the old key: %v", err)
	}
}

func TestWhereKeysComeFrom(t *testing.T) {
	dir, credentials := t.TempDir(), t.TempDir()
	first := keyring(t, dir, credentials)
	if !first.Generated {
		t.Error("a generated key is not told as such")
	}
	if info, err := os.Stat(filepath.Join(dir, "seal.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if again := keyring(t, dir, ""); again.KeyID() != first.KeyID() || !again.Generated {
		t.Error("the second start has another key")
	}
	sealed, err := first.Seal([]byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(credentials, CredentialName), keyLine(7), 0o440)
	given := keyring(t, dir, credentials)
	if given.Generated || given.KeyID() == first.KeyID() {
		t.Error("the credential is not used")
	}
	if _, err := given.Open(sealed, nil); err != nil {
		t.Errorf("what the generated key had sealed: %v", err)
	}
	if only := keyring(t, t.TempDir(), credentials); only.KeyID() != given.KeyID() {
		t.Error("the credential alone is another key")
	}
}

func TestKeysThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		name, words string
		prepare     func(t *testing.T, dir string)
	}{
		{"readable by the group", "mode 0640", func(t *testing.T, d string) { write(t, d+"/seal.key", keyLine(1), 0o640) }},
		{"readable by all", "mode 0644", func(t *testing.T, d string) { write(t, d+"/seal.key", keyLine(1), 0o644) }},
		{"empty", "holds no key", func(t *testing.T, d string) { write(t, d+"/seal.key", "\n# nothing\n", 0o600) }},
		{"short", "invalid key 2", func(t *testing.T, d string) { write(t, d+"/seal.key", keyLine(1)+"AAAA\n", 0o600) }},
		{"bad credential", CredentialName, func(t *testing.T, d string) { write(t, d+"/"+CredentialName, "password", 0o400) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			c.prepare(t, dir)
			if _, err := LoadKeyring(dir, dir); err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %v, want …%s…", err, c.words)
			}
		})
	}
}

func TestTokens(t *testing.T) {
	dir := t.TempDir()
	tokens := NewTokens(keyring(t, dir, ""))
	token := tokens.Token(PurposeConfig, "uid-1", "attempt-1")
	if restarted := NewTokens(keyring(t, dir, "")); restarted.Token(PurposeConfig, "uid-1", "attempt-1") != token {
		t.Error("a restart derives another token")
	}
	if !tokens.Verify(token, PurposeConfig, "uid-1", "attempt-1") {
		t.Error("the right token is refused")
	}
	for _, c := range []struct {
		token    string
		purpose  Purpose
		uid, att string
	}{
		{token, PurposeJoin, "uid-1", "attempt-1"},
		{token, PurposeConfig, "uid-2", "attempt-1"},
		{token, PurposeConfig, "uid-1", "attempt-2"},
		{token, PurposeConfig, "uid-1a", "ttempt-1"},
		{token[:len(token)-1], PurposeConfig, "uid-1", "attempt-1"},
		{"", PurposeConfig, "uid-1", "attempt-1"},
		{NewTokens(keyring(t, t.TempDir(), "")).Token(PurposeConfig, "uid-1", "attempt-1"), PurposeConfig, "uid-1", "attempt-1"},
		{tokens.Token(PurposeConfig, "", ""), PurposeConfig, "", ""},
	} {
		if tokens.Verify(c.token, c.purpose, c.uid, c.att) {
			t.Errorf("taken: %+v", c)
		}
	}
}

func FuzzOpen(f *testing.F) {
	k := keyring(f, f.TempDir(), "")
	sealed, err := k.Seal([]byte("plain"), []byte("aad"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed, []byte("aad"))
	f.Add(sealed, []byte(""))
	f.Add(sealed[:minSealed], []byte("aad"))
	f.Add([]byte{sealVersion}, []byte{})
	f.Fuzz(func(t *testing.T, box, aad []byte) {
		plain, err := k.Open(box, aad)
		if err == nil && (!bytes.Equal(box, sealed) || string(aad) != "aad" || string(plain) != "plain") {
			t.Errorf("opened what was never sealed: %q", plain)
		}
	})
}
