package redfish

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/rackweft/rackweft/hardware"
)

// anchors has what concerns the CAs that the firmware trusts.
type anchors struct{ *driver }

// tlsConfig is HPE's HpeTlsConfig: what the firmware trusts at HTTPS boot.
type tlsConfig struct {
	Settings     settingsLink `json:"@Redfish.Settings"`
	Certificates []struct {
		FingerPrint text `json:"FingerPrint"` // SHA-256, in hex with colons
	} `json:"Certificates"`
	New []struct {
		Certificate text `json:"X509Certificate"`
	} `json:"NewCertificates"`
	Verify text `json:"VerifyMode"`
}

// trustAtBoot has the firmware trust a CA when it boots over HTTPS: in the system's collection (ComputerSystem 1.7), else in
// HPE's own resource. It does so from its next POST.
func (r anchors) trustAtBoot(ctx context.Context, ca *x509.Certificate) error {
	sys, _, err := r.system(ctx)
	if err != nil {
		return err
	}
	if at := string(sys.Boot.Certificates.ID); at != "" {
		return r.addCertificate(ctx, at, ca)
	}
	if sys.Bios.ID != "" {
		var b bios
		if _, err := r.get(ctx, string(sys.Bios.ID), &b); ignoreMissing(err) != nil {
			return err
		}
		if at := string(b.Oem.HPE.Links.TLS.ID); at != "" {
			return r.addToTLSConfig(ctx, at, ca)
		}
	}
	return fmt.Errorf("%w: it takes no certificate for HTTPS boot: enroll the CA in the firmware's setup", hardware.ErrUnsupported)
}

// addCertificate adds to a CertificateCollection, and looks afterwards that it is in there.
func (r anchors) addCertificate(ctx context.Context, collection string, ca *x509.Certificate) error {
	if there, err := r.hasCertificate(ctx, collection, ca); err != nil || there {
		return err
	}
	w := &write{method: http.MethodPost, path: collection, fields: map[string]any{"CertificateType": "PEM", "CertificateString": toPEM(ca)}}
	// An iDRAC's job ends only after the reset: until then nothing shows.
	if err := r.patch(ctx, w); err != nil {
		if errors.Is(err, hardware.ErrUnfinished) {
			return nil
		}
		return err
	}
	there, err := r.hasCertificate(ctx, collection, ca)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if !there {
		return fmt.Errorf("%s: %w", collection, hardware.ErrNotSeen)
	}
	return nil
}

func (r anchors) hasCertificate(ctx context.Context, collection string, ca *x509.Certificate) (bool, error) {
	paths, err := r.members(ctx, collection)
	if err != nil {
		return false, err
	}
	for _, at := range paths {
		var one struct {
			Certificate text `json:"CertificateString"`
		}
		if _, err := r.get(ctx, at, &one); err != nil {
			return false, err
		}
		if isPEMOf(string(one.Certificate), ca) {
			return true, nil
		}
	}
	return false, nil
}

// addToTLSConfig adds to HPE's pending settings, by PUT, as its manual has it, and turns the check of certificates on where it
// is off.
func (r anchors) addToTLSConfig(ctx context.Context, at string, ca *x509.Certificate) error {
	var now, pending tlsConfig
	if _, err := r.get(ctx, at, &now); err != nil {
		return err
	}
	settings := string(now.Settings.Object.ID)
	if settings == "" {
		return fmt.Errorf("%w: %s has no settings that can be written", hardware.ErrUnsupported, at)
	}
	etag, err := r.get(ctx, settings, &pending)
	if err != nil {
		return err
	}
	if !now.has(ca) && !pending.awaits(ca) {
		add := &write{method: http.MethodPut, path: settings, etag: etag,
			fields: map[string]any{"NewCertificates": []any{map[string]any{"X509Certificate": toPEM(ca)}}}}
		if err := r.patch(ctx, add); err != nil {
			return err
		}
		if etag, err = r.get(ctx, settings, &pending); err != nil {
			return fmt.Errorf("read back: %w", err)
		}
		if !pending.awaits(ca) {
			return fmt.Errorf("%s: %w", settings, hardware.ErrNotSeen)
		}
	}
	if cmp.Or(pending.Verify, now.Verify) != "NONE" {
		return nil
	}
	return r.patch(ctx, &write{path: settings, etag: etag, fields: map[string]any{"VerifyMode": text("PEER")}})
}

func (c tlsConfig) has(ca *x509.Certificate) bool {
	sum := sha256.Sum256(ca.Raw)
	for _, one := range c.Certificates {
		if strings.EqualFold(strings.ReplaceAll(string(one.FingerPrint), ":", ""), hex.EncodeToString(sum[:])) {
			return true
		}
	}
	return false
}

func (c tlsConfig) awaits(ca *x509.Certificate) bool {
	for _, one := range c.New {
		if isPEMOf(string(one.Certificate), ca) {
			return true
		}
	}
	return false
}

func toPEM(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

func isPEMOf(text string, c *x509.Certificate) bool {
	block, _ := pem.Decode([]byte(text))
	return block != nil && bytes.Equal(block.Bytes, c.Raw)
}
