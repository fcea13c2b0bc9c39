package ignition

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	latest "github.com/coreos/ignition/v2/config"
	"github.com/vincent-petithory/dataurl"
)

func newCA(t *testing.T, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestPointer(t *testing.T) {
	first, second, third := newCA(t, "one"), newCA(t, "two"), newCA(t, "three")
	for _, version := range Versions() {
		raw, err := Pointer(PointerConfig{
			URL: "https://198.18.0.2:8443/v1/boot/r1u07", Token: "AbC-._~+/123==", Version: version,
			CAs: [][]byte{append(append([]byte("# site\n"), first...), second...), third},
		})
		if err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		config, verdict, err := latest.Parse(raw)
		if err != nil || len(verdict.Entries) > 0 {
			t.Fatalf("%s: Ignition says %v\n%s", version, err, verdict)
		}
		replace := config.Ignition.Config.Replace
		headers, err := replace.HTTPHeaders.Parse()
		if err != nil || headers.Get("Authorization") != "Bearer AbC-._~+/123==" {
			t.Errorf("%s: headers %v, %v", version, headers, err)
		}
		if *replace.Source != "https://198.18.0.2:8443/v1/boot/r1u07" {
			t.Errorf("%s: source %s", version, *replace.Source)
		}
		cas := config.Ignition.Security.TLS.CertificateAuthorities
		for i, want := range [][]byte{first, second, third} {
			if url, err := dataurl.DecodeString(*cas[i].Source); err != nil || !bytes.Equal(url.Data, want) {
				t.Errorf("%s: CA %d is %s, %v", version, i, url.Data, err)
			}
		}
		if !bytes.Contains(raw, []byte(`"version":"`+version+`"`)) {
			t.Errorf("%s: %s", version, raw)
		}
	}
}

func TestPointerErrors(t *testing.T) {
	good := PointerConfig{URL: "https://h/c", Token: "sesame", Version: "3.4.0"}
	key := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{1}})
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}})
	tests := []struct {
		name   string
		change func(*PointerConfig)
		want   string
	}{
		{"good", func(*PointerConfig) {}, ""},
		{"plain http", func(p *PointerConfig) { p.URL = "http://h/c" }, "the URL must be https"},
		{"no host", func(p *PointerConfig) { p.URL = "https:///c" }, "the URL must be https"},
		{"password", func(p *PointerConfig) { p.URL = "https://a:sesame@h/c" }, "the URL must be https"},
		{"not a URL", func(p *PointerConfig) { p.URL = "https://sesame\x7f/" }, "the URL must be https"},
		{"no token", func(p *PointerConfig) { p.Token = "" }, "the token is empty"},
		{"header injection", func(p *PointerConfig) { p.Token = "sesame\r\nX: y" }, "the token is empty or has characters"},
		{"old version", func(p *PointerConfig) { p.Version = "3.0.0" }, `cannot produce Ignition version "3.0.0"`},
		{"no PEM", func(p *PointerConfig) { p.CAs = [][]byte{{}} }, "the CA is not a PEM certificate"},
		{"a key", func(p *PointerConfig) { p.CAs = [][]byte{key} }, "the CA's PEM holds a EC PRIVATE KEY"},
		{"broken", func(p *PointerConfig) { p.CAs = [][]byte{broken} }, "the CA's certificate: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := good
			tt.change(&p)
			_, err := Pointer(p)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("unexpected: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error is %v, want %s", err, tt.want)
			case err != nil && strings.Contains(err.Error(), "sesame"):
				t.Errorf("shows the token: %v", err)
			}
		})
	}
}
