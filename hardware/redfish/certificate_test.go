package redfish

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/redfishtest"
)

func newCA() (*x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Site"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// HPE shows what the firmware trusts by its fingerprint alone, and trusts any server while VerifyMode is NONE.
func TestTrustAtBootOfHPE(t *testing.T) {
	const at = "/redfish/v1/Systems/1/Bios/Oem/Hpe/TlsConfig"
	ca, err := newCA()
	if err != nil {
		t.Fatal(err)
	}
	v, err := redfishtest.VendorOf("hpe-ilo5")
	if err != nil {
		t.Fatal(err)
	}
	tree, err := v.Tree()
	if err != nil {
		t.Fatal(err)
	}
	sum := strings.ReplaceAll(fmt.Sprintf("% X", sha256.Sum256(ca.Raw)), " ", ":")
	tree[at]["Certificates"] = []any{map[string]any{"FingerPrint": sum}}
	b := dialled(t, redfishtest.Start(t, tree))
	if err := b.TrustAtBoot(t.Context(), ca); err != nil {
		t.Fatal(err)
	}
	var pending tlsConfig
	if _, err := b.driver.get(t.Context(), at+"/Settings", &pending); err != nil || pending.Verify != "PEER" || len(pending.New) != 0 {
		t.Errorf("%+v, %v: want the check turned on, and the CA not sent", pending, err)
	}
}

// The URL of an HTTP boot goes with its override.
func TestBootURLIsTakenBack(t *testing.T) {
	for vendor, attribute := range map[string]string{"hpe-ilo5": "UrlBootFile", "dell-idrac9": "HttpDev1Uri"} {
		b := dialled(t, redfishtest.StartVendor(t, vendor))
		for _, step := range []struct {
			boot hardware.Boot
			url  string
		}{{hardware.Boot{Target: hardware.BootHTTP, HTTPURL: testURL}, testURL}, {hardware.Boot{Target: hardware.BootNone}, ""}} {
			if err := b.SetBootOnce(t.Context(), step.boot); err != nil {
				t.Fatalf("%s: %v", vendor, err)
			}
			var pending bios
			_, err := b.driver.get(t.Context(), b.driver.systemPath+"/Bios/Settings", &pending)
			if err != nil || pending.Attributes[attribute] != step.url {
				t.Errorf("%s: %v, %v after %s, want %q", vendor, pending.Attributes, err, step.boot.Target, step.url)
			}
			if mode := pending.Attributes["HttpDev1TlsMode"]; mode != nil && mode != "OneWay" {
				t.Errorf("%s: mode of TLS %v, want the server's certificate checked", vendor, mode)
			}
		}
	}
}

// A boot URL is a secret: no error repeats it, whatever the BMC does.
func TestBootURLStaysOutOfErrors(t *testing.T) {
	for _, s := range []*redfishtest.Server{redfishtest.StartVendor(t, "supermicro-x10"), redfishtest.StartVendor(t, "hpe-ilo5", redfishtest.ReadOnlyUser)} {
		err := dialled(t, s).SetBootOnce(t.Context(), hardware.Boot{Target: hardware.BootHTTP, HTTPURL: testURL})
		if err == nil || strings.Contains(err.Error(), testURL) {
			t.Errorf("%v", err)
		}
	}
}

// Nor does the log, where the BMC is asked in another way.
func TestBootURLStaysOutOfTheLog(t *testing.T) {
	m := vendorMock(t, "lenovo-xcc")
	m.fail(http.MethodPatch, "/redfish/v1/Systems/1", answers(http.StatusBadRequest, `{"error":{"@Message.ExtendedInfo":[{"MessageId":"Base.1.8.PropertyNotWritable",
		"Message":"BootSourceOverrideMode does not go with `+testURL+`","MessageArgs":["BootSourceOverrideMode"]}]}}`))
	var log bytes.Buffer
	b, err := dial(t.Context(), m.endpoint(), slog.New(slog.NewTextHandler(&log, nil)), (&pauses{}).pause)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close(t.Context()) }()
	err = b.SetBootOnce(t.Context(), hardware.Boot{Target: hardware.BootHTTP, HTTPURL: testURL})
	if text := log.String(); err != nil || strings.Contains(text, testURL) || !strings.Contains(text, "does not go with") {
		t.Errorf("%v; logged %q, want the BMC's words without the URL", err, text)
	}
}
