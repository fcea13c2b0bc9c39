package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
)

// IssueNetwork creates a key and a client certificate named network:<name>,
// with which a stock flanneld reaches the keys of that Network only. bootd does
// not store the key.
func (a *Authority) IssueNetwork(name, uid string, ttl time.Duration) (certPEM, keyPEM []byte, err error) {
	if err := api.ValidateName(name); err != nil {
		return nil, nil, fmt.Errorf("issue a Network's certificate: %w", err)
	}
	if !wellFormed(uid) {
		return nil, nil, fmt.Errorf("issue a certificate for Network %s: invalid uid %q", name, uid)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key for Network %s: %w", name, err)
	}
	certPEM, err = a.client(key.Public(), ttl, func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: "network:" + name}
		c.URIs = []*url.URL{networkURI(name, uid)}
	})
	if err != nil {
		return nil, nil, fmt.Errorf("issue a certificate for Network %s: %w", name, err)
	}
	keyPEM, err = encodeKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the key of Network %s: %w", name, err)
	}
	return certPEM, keyPEM, nil
}

// NetworkOf returns the Network that a certificate was issued for. It does not
// verify the certificate. IdentityOf refuses such a certificate: it gives no
// access to the API.
func NetworkOf(cert *x509.Certificate) (name, uid string, err error) {
	name, ok := strings.CutPrefix(cert.Subject.CommonName, "network:")
	if !ok || len(cert.URIs) != 1 {
		return "", "", fmt.Errorf("a certificate for %q names no Network", cert.Subject.CommonName)
	}
	uid = cert.URIs[0].Path[strings.LastIndexByte(cert.URIs[0].Path, '/')+1:]
	if *cert.URIs[0] != *networkURI(name, uid) || !wellFormed(uid) {
		return "", "", fmt.Errorf("the certificate of %q names %s, which is another", cert.Subject.CommonName, cert.URIs[0])
	}
	return name, uid, nil
}

func networkURI(name, uid string) *url.URL {
	return &url.URL{Scheme: "rackweft", Host: "network", Path: "/" + name + "/" + uid}
}
