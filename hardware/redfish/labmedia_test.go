package redfish

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/lab/bmc"
	"github.com/rackweft/rackweft/lab/bmc/bmctest"
)

// The lab's BMC fetches an image over TLS, in each vendor's style, and from no server that has no certificate of the CA.
func TestLabMedia(t *testing.T) {
	images := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("an image")) }))
	t.Cleanup(images.Close)
	another, err := newCA()
	if err != nil {
		t.Fatal(err)
	}
	image := images.URL + "/secret/boot.iso"
	for _, style := range []bmc.MediaStyle{bmc.StandardMedia, bmc.HPEMedia, bmc.SupermicroMedia, bmc.LenovoMedia, bmc.NokiaMedia, bmc.DGXMedia} {
		t.Run(string(style), func(t *testing.T) {
			machine := bmctest.Start(t, func(c *bmc.Config) { c.Systems[0].Media.Style = style })
			ctx := t.Context()
			b, err := Dial(ctx, hardware.Endpoint{Address: machine.URL, Username: bmctest.Username, Password: bmctest.Password}, quiet())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = b.Close(ctx) }()
			err = b.InsertMedia(ctx, hardware.Media{Image: image, CA: another})
			if err == nil || errors.Is(err, hardware.ErrUnsupported) || strings.Contains(err.Error(), "secret") || machine.Medium() != "" {
				t.Fatalf("from a server of another CA: %v, medium %q", err, machine.Medium())
			}
			if err := b.InsertMedia(ctx, hardware.Media{Image: image, CA: images.Certificate()}); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(machine.Medium()); err != nil || string(got) != "an image" {
				t.Errorf("the drive has %q, %v", got, err)
			}
			if err := errors.Join(b.SetBootOnce(ctx, hardware.Boot{Target: hardware.BootMedia}), b.PowerOn(ctx)); err != nil {
				t.Fatal(err)
			}
			if got := machine.Booted(); len(got) != 1 || got[0] != bmc.Cd && got[0] != bmc.UsbCd {
				t.Errorf("booted from %v", got)
			}
			if err := b.EjectMedia(ctx, image); err != nil || machine.Medium() != "" {
				t.Errorf("after the eject: %v, medium %q", err, machine.Medium())
			}
		})
	}
}
