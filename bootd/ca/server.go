package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/rackweft/rackweft/internal/file"
)

// EnsureServer makes bootd's certificate name exactly these DNS names and
// addresses. It is stored in <stateDir>/ca/server.pem and reissued only when
// they change; issued reports that, also when the file could not be written.
// Open connections continue.
func (a *Authority) EnsureServer(names []string, addrs []netip.Addr) (issued bool, err error) {
	names, ips := sans(names, addrs)
	path := filepath.Join(a.dir, "server.pem")
	current, err := a.loadServer(path)
	if err != nil {
		return false, err
	}
	if current != nil && slices.Equal(current.Leaf.DNSNames, names) && slices.EqualFunc(current.Leaf.IPAddresses, ips, net.IP.Equal) {
		a.server.Store(current)
		return false, nil
	}
	raw, err := a.issueServer(names, ips)
	if err != nil {
		return false, fmt.Errorf("issue bootd's certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		return false, fmt.Errorf("read bootd's new certificate: %w", err)
	}
	a.server.Store(&pair)
	if err := file.Replace(path, raw, file.Options{}); err != nil {
		return true, fmt.Errorf("store bootd's certificate: %w", err)
	}
	return true, nil
}

// sans sorts the names, so that equal sets give equal lists.
func sans(names []string, addrs []netip.Addr) ([]string, []net.IP) {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	plain := make([]netip.Addr, len(addrs))
	for i, addr := range addrs {
		plain[i] = addr.Unmap().WithZone("")
	}
	slices.SortFunc(plain, netip.Addr.Compare)
	ips := make([]net.IP, 0, len(plain))
	for _, addr := range slices.Compact(plain) {
		ips = append(ips, addr.AsSlice())
	}
	return names, ips
}

// loadServer returns nil when there is no certificate signed by this CA; a new
// one is equivalent.
func (a *Authority) loadServer(path string) (*tls.Certificate, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read bootd's certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		return nil, nil
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: a.pool, CurrentTime: a.now()}); err != nil {
		return nil, nil
	}
	return &pair, nil
}

func (a *Authority) issueServer(names []string, ips []net.IP) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	certPEM, err := sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "bootd"},
		NotBefore:   beginning(),
		NotAfter:    end(),
		DNSNames:    names,
		IPAddresses: ips,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return append(certPEM, keyPEM...), nil
}

// ServerTLS is the configuration of bootd's listeners on :8443. A client may
// show a certificate, which must be signed by this CA; Identify returns the
// client. EnsureServer must be called before the first connection.
//
// TLS 1.2 is for BMCs and firmware, many of which speak nothing newer. It is accepted only with forward secrecy and
// authenticated encryption. It requests no client certificate, because TLS 1.2 sends that in clear: hosts and people use TLS 1.3.
func (a *Authority) ServerTLS() *tls.Config {
	certificate := func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if cert := a.server.Load(); cert != nil {
			return cert, nil
		}
		return nil, errors.New("bootd has no certificate yet")
	}
	old := &tls.Config{
		MinVersion: tls.VersionTLS12,
		MaxVersion: tls.VersionTLS12,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256},
		GetCertificate: certificate,
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      a.Pool(),
		Time:           a.now,
		GetCertificate: certificate,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
				return nil, nil // that is, this one
			}
			return old, nil
		},
	}
}
