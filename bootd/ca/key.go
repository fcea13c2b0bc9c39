package ca

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
)

// RequestKey is the digest of the public key that a certificate request (PEM)
// is over, after the request's signature was checked.
func RequestKey(csrPEM []byte) (string, error) {
	csr, err := parseCSR(csrPEM)
	if err != nil {
		return "", err
	}
	return digest(csr.RawSubjectPublicKeyInfo), nil
}

// CertificateKey is the digest of a certificate's public key, equal to the
// RequestKey of the request that it was issued for.
func CertificateKey(cert *x509.Certificate) string { return digest(cert.RawSubjectPublicKeyInfo) }

func digest(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}
