package backup

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
)

func head() Header {
	return Header{Created: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC), Bootd: "test", Epoch: 4, Revision: 118}
}

// archive has the pieces of a small Site.
func archive(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, head())
	if err != nil {
		t.Fatal(err)
	}
	piece := func(name, content string) {
		if err := w.Piece(name, int64(len(content)), strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	piece(SealKey, "key\n")
	piece(CACert, "cert")
	piece(CAKey, "secret")
	r := w.Records()
	for i := range 3 {
		if err := r.Add(Record{Key: fmt.Sprintf("/rackweft/%d", i), Value: bytes.Repeat([]byte{byte(i)}, 900<<10), TTL: i == 2}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	piece(BlobPrefix+strings.Repeat("a", 64), "a kernel")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// content reads an archive into a text for each piece.
func content(r io.Reader) (Header, map[string]string, []Record, error) {
	pieces, records := map[string]string{}, []Record(nil)
	h, err := Read(r, func(_ Header, p Piece) error {
		if strings.HasPrefix(p.Name, StorePrefix) {
			return ReadRecords(p, func(rec Record) error { records = append(records, rec); return nil })
		}
		raw, err := io.ReadAll(p)
		pieces[p.Name] = string(raw)
		return err
	})
	return h, pieces, records, err
}

func TestArchive(t *testing.T) {
	h, pieces, records, err := content(bytes.NewReader(archive(t)))
	if err != nil {
		t.Fatal(err)
	}
	want := head()
	want.Format, want.Version = formatName, Version
	if fmt.Sprint(h) != fmt.Sprint(want) {
		t.Errorf("header %+v, want %+v", h, want)
	}
	if len(pieces) != 4 || pieces[SealKey] != "key\n" || pieces[CAKey] != "secret" || pieces[BlobPrefix+strings.Repeat("a", 64)] != "a kernel" {
		t.Errorf("the pieces are %q", pieces)
	}
	if len(records) != 3 || records[2].Key != "/rackweft/2" || !records[2].TTL || len(records[1].Value) != 900<<10 || records[1].Value[7] != 1 {
		t.Errorf("%d records", len(records))
	}
}

func TestEveryCutAndFlipIsSeen(t *testing.T) {
	whole := archive(t)
	step := len(whole)/97 + 1
	for at := 0; at < len(whole); at += step {
		if _, _, _, err := content(bytes.NewReader(whole[:at])); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut at %d of %d: %v", at, len(whole), err)
		}
	}
	// A bit of a piece's content: the archive's own form stays right.
	for _, word := range []string{"secret", "a kernel"} {
		bad := bytes.Clone(whole)
		bad[bytes.Index(bad, []byte(word))] ^= 1
		if _, _, _, err := content(bytes.NewReader(bad)); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "is not what was written") {
			t.Errorf("a bit of %q is another: %v", word, err)
		}
	}
	if _, _, _, err := content(bytes.NewReader(append(bytes.Clone(whole), "more"...))); !errors.Is(err, ErrDamaged) {
		t.Errorf("something behind the end: %v", err)
	}
}

// TestForeignEntries has no name of an archive become a path.
func TestForeignEntries(t *testing.T) {
	for _, name := range []string{"../../etc/passwd", "/etc/passwd", "ca/../seal.key", "store/1", "store/00000a", BlobPrefix + strings.Repeat("A", 64), "header.json", "ca/server.pem"} {
		var out bytes.Buffer
		w, err := NewWriter(&out, head())
		if err == nil {
			err = w.Piece(name, 1, strings.NewReader("x"))
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, pieces, _, err := content(&out); !errors.Is(err, ErrDamaged) || len(pieces) > 0 {
			t.Errorf("%s: %v, %q", name, err, pieces)
		}
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: headerPiece, Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"}), w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := content(&out); !errors.Is(err, ErrDamaged) {
		t.Errorf("a link: %v", err)
	}
}

func TestLaterVersion(t *testing.T) {
	raw := bytes.Replace(archive(t), []byte(`"version":1`), []byte(`"version":2`), 1)
	_, _, _, err := content(bytes.NewReader(raw))
	if err == nil || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "reads up to 1") {
		t.Errorf("version 2: %v", err)
	}
}

func TestPieceOfAnotherSize(t *testing.T) {
	w, err := NewWriter(io.Discard, head())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Piece(SealKey, 10, strings.NewReader("short")); err == nil || !strings.Contains(err.Error(), "has 5 bytes, want 10") {
		t.Errorf("a file that shrank: %v", err)
	}
}

func sealed(t *testing.T, plain []byte, to ...age.Recipient) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := Encrypt(&out, to...)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func opened(raw []byte, with ...age.Identity) error {
	plain, err := Decrypt(bytes.NewReader(raw), with...)
	if err != nil {
		return err
	}
	_, _, _, err = content(plain)
	return err
}

func TestPassphrase(t *testing.T) {
	if _, err := ToPassphrase("too short"); err == nil {
		t.Error("nine characters are taken")
	}
	to, err := ToPassphrase("correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	to.(*age.ScryptRecipient).SetWorkFactor(10) // the default takes a second for each of the tries below
	file := sealed(t, archive(t), to)
	right, err := FromPassphrase("correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	if err := opened(file, right); err != nil {
		t.Errorf("the right passphrase: %v", err)
	}
	wrong, err := FromPassphrase("correct horse batterx")
	if err != nil {
		t.Fatal(err)
	}
	if err := opened(file, wrong); !errors.Is(err, ErrWrongKey) || !strings.Contains(err.Error(), "passphrase is wrong") {
		t.Errorf("the wrong passphrase: %v", err)
	}
	for _, at := range []int{0, 20, 200, len(file) / 2, len(file) - 17, len(file) - 1} {
		if err := opened(file[:at], right); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut at %d of %d: %v", at, len(file), err)
		}
	}
	flipped := bytes.Clone(file)
	flipped[len(flipped)/2] ^= 1
	if err := opened(flipped, right); !errors.Is(err, ErrDamaged) {
		t.Errorf("a flipped bit: %v", err)
	}
	if err := opened([]byte("PK\x03\x04 a zip"), right); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "not an age file") {
		t.Errorf("another file: %v", err)
	}
}

func TestRecipients(t *testing.T) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	to, err := ToRecipients([]string{key.Recipient().String() + "\n"})
	if err != nil {
		t.Fatal(err)
	}
	file := sealed(t, archive(t), to...)
	with, err := FromIdentities([]byte("# created: today\n" + key.String() + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := opened(file, with...); err != nil {
		t.Errorf("its identity: %v", err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	phrase, err := FromPassphrase("correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]age.Identity{"another identity": other, "a passphrase": phrase} {
		if err := opened(file, id); !errors.Is(err, ErrWrongKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ToRecipients([]string{key.String()}); err == nil {
		t.Error("a secret key is taken for a recipient")
	}
	if _, err := FromIdentities([]byte("nothing")); err == nil {
		t.Error("a file without an identity is taken for one")
	}
}

// FuzzRead has an archive that says it is whole be one that a Writer could have
// made: whatever is in it is read back the same when it is written again.
func FuzzRead(f *testing.F) {
	var small bytes.Buffer
	w, err := NewWriter(&small, head())
	if err != nil {
		f.Fatal(err)
	}
	r := w.Records()
	if err := errors.Join(w.Piece(SealKey, 1, strings.NewReader("k")), r.Add(Record{Key: "/k", Value: []byte("v")}), r.Flush(), w.Close()); err != nil {
		f.Fatal(err)
	}
	f.Add(small.Bytes())
	f.Add(small.Bytes()[:700])
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, pieces, records, err := content(bytes.NewReader(raw))
		if err != nil {
			return
		}
		if h.Format != formatName || h.Version != Version {
			t.Errorf("header %+v is taken", h)
		}
		for name := range pieces {
			if name != SealKey && name != CACert && name != CAKey && !blobName().MatchString(name) {
				t.Errorf("piece %q is taken", name)
			}
		}
		for _, rec := range records {
			if rec.Key == "" {
				t.Error("a record without a key is taken")
			}
		}
	})
}
