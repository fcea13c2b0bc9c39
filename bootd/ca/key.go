package ca

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
)

// RequestKey checks the signature of a certificate request (PEM) and returns
// the digest of its public key.
func RequestKey(csrPEM []byte) (string, error) {
	csr, err := parseCSR(csrPEM)
	if err != nil {
		return "", err
	}
	return digest(csr.RawSubjectPublicKeyInfo), nil
}

// CertificateKey returns the digest of a certificate's public key, which equals
// the RequestKey of its request.
func CertificateKey(cert *x509.Certificate) string { return digest(cert.RawSubjectPublicKeyInfo) }

func digest(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}
