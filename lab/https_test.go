package lab

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestHTTPSBoot: OVMF with a CA enrolled boots from an https:// URL, as a BMC
// would set it, and does not speak with whoever answers there with a certificate
// of another CA. bootd's own port is too new for it, as docs/security.md says.
func TestHTTPSBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("boots virtual machines")
	}
	for _, file := range []string{"/usr/bin/qemu-system-x86_64", ovmfCode, ovmfVars} {
		if _, err := os.Stat(file); err != nil {
			t.Skipf("QEMU and OVMF are not installed: %v", err)
		}
	}
	key := func() crypto.Signer {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	site, impostor := newAuthority(t, key()), newAuthority(t, key())
	modern := newAuthority(t, curve)
	// Without these, Go offers no key exchange that this OVMF knows.
	suites := []uint16{tls.TLS_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
	for _, c := range []struct {
		name     string
		enrolled *authority
		server   *tls.Config
		boots    bool
		want     string // that the server or the console says
	}{
		{"the CA that is enrolled", site, &tls.Config{Certificates: site.server(t), CipherSuites: suites}, true, asked},
		{"another CA", site, &tls.Config{Certificates: impostor.server(t), CipherSuites: suites}, false, gaveUp},
		{"TLS as bootd's port speaks it", modern, &tls.Config{Certificates: modern.server(t), MinVersion: tls.VersionTLS12}, false, "no cipher suite supported by both client and server"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			said := httpsBoot(t, c.enrolled, c.server)
			if !strings.Contains(said, c.want) || strings.Contains(said, asked) != c.boots {
				t.Errorf("it came to %q, want %q", said, c.want)
			}
		})
	}
}

// How an attempt to boot over HTTPS ends: the server is asked, or OVMF gives up.
const (
	asked  = "HEAD /boot/key.efi"
	gaveUp = "Could not retrieve NBP file size from HTTP server"
)

// httpsBoot starts a machine whose firmware has the CA enrolled and is to boot
// over HTTPS, and returns what its server and its console say until it has asked
// or given up.
func httpsBoot(t *testing.T, ca *authority, conf *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	said := newTranscript()
	http1 := new(http.Protocols)
	http1.SetHTTP1(true) // HTTP/2 needs cipher suites that are too new
	server := &http.Server{TLSConfig: conf, Protocols: http1, ErrorLog: log.New(said, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintln(said, r.Method, r.URL.Path)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	defer func() {
		_ = server.Close()
		<-done
	}()

	dir := t.TempDir()
	mac := net.HardwareAddr{0x52, 0x54, 0, 1, 7, 0}
	empty, err := os.ReadFile(ovmfVars)
	if err != nil {
		t.Fatal(err)
	}
	vars, err := bootVariables(empty, mac, fmt.Sprintf("https://198.18.2.2:%d/boot/key.efi", l.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"vars.fd": vars, "ca.esl": ca.signatureList()} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-no-user-config", "-nodefaults", "-display", "none", "-machine", "q35,graphics=off,smm=off", "-m", "256",
		"-accel", "tcg,thread=multi", "-cpu", emulatedCPU, "-serial", "stdio",
		"-object", "rng-random,id=entropy,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=entropy,addr=0x6",
		"-netdev", "user,id=n0,net=198.18.2.0/24,host=198.18.2.2", "-device", "virtio-net-pci,netdev=n0,mac="+mac.String()+",romfile=,addr=0x3",
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+ovmfCode, "-drive", "if=pflash,unit=1,format=raw,file=vars.fd",
		"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no", "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=no",
		"-fw_cfg", "name=etc/edk2/https/cacerts,file=ca.esl") // OvmfPkg/RUNTIME_CONFIG.md
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = dir, said, said, 10*time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-said.over:
	case <-ctx.Done():
		t.Error("it neither asked nor gave up")
	}
	cancel()
	_ = cmd.Wait() // killed
	return said.String()
}

// transcript is what a server and a console have said.
type transcript struct {
	mu   sync.Mutex
	text strings.Builder
	over chan struct{} // closed when the boot has come to an end
	once sync.Once
}

func newTranscript() *transcript { return &transcript{over: make(chan struct{})} }

func (s *transcript) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(b)
	if text := s.text.String(); strings.Contains(text, asked) || strings.Contains(text, gaveUp) {
		s.once.Do(func() { close(s.over) })
	}
	return len(b), nil
}

func (s *transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// authority is a CA.
type authority struct {
	key  crypto.Signer
	cert *x509.Certificate
}

func newAuthority(t *testing.T, key crypto.Signer) *authority {
	t.Helper()
	a := &authority{key: key}
	a.cert = &x509.Certificate{Subject: pkix.Name{CommonName: "site"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.cert = a.sign(t, a.cert)
	return a
}

// server is a certificate for the address of the user network's host.
func (a *authority) server(t *testing.T) []tls.Certificate {
	t.Helper()
	leaf := a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "bootd"}, IPAddresses: []net.IP{net.IPv4(198, 18, 2, 2)},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: a.key}}
}

func (a *authority) sign(t *testing.T, template *x509.Certificate) *x509.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// signatureList is the CA as EFI_SIGNATURE_LIST of one X.509 certificate (UEFI
// 2.10 §32.4.1).
func (a *authority) signatureList() []byte {
	const header, owner = 28, 16
	list := efiGUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072") // EFI_CERT_X509_GUID
	size := uint32(owner + len(a.cert.Raw))
	for _, n := range []uint32{header + size, 0, size} {
		list = binary.LittleEndian.AppendUint32(list, n)
	}
	return append(append(list, efiGUID("0c5f4d4e-0107-4000-8000-525400010700")...), a.cert.Raw...)
}
