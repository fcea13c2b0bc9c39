package redfish

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/redfishtest"
)

// Two servers of one manager, whose drive says nothing of either: an image that is meant for one must not be booted by the
// other.
func TestMediaOfTwoServersIsLeftAlone(t *testing.T) {
	v, err := redfishtest.VendorOf("hpe-ilo5")
	if err != nil {
		t.Fatal(err)
	}
	tree, err := v.Tree()
	if err != nil {
		t.Fatal(err)
	}
	both := []any{map[string]any{"@odata.id": v.System}, map[string]any{"@odata.id": "/redfish/v1/Systems/2"}}
	tree["/redfish/v1/Managers/1"]["Links"] = map[string]any{"ManagerForServers": both}
	b := dialled(t, redfishtest.Start(t, tree))
	if err := b.InsertMedia(t.Context(), hardware.Media{Image: testImage}); !errors.Is(err, hardware.ErrUnsupported) || !strings.Contains(err.Error(), "which of its 2 servers") {
		t.Errorf("%v, want it refused", err)
	}
}

// No BMC is asked to fetch what is no image.
func TestImagesThatAreNone(t *testing.T) {
	b := dialled(t, redfishtest.StartVendor(t, "hpe-ilo5"))
	for _, image := range []string{"", "weft.iso", "file:///etc/shadow", "https:///weft.iso", "https://198.18.0.1/weft.iso?key=1"} {
		if err := b.InsertMedia(t.Context(), hardware.Media{Image: image}); err == nil || strings.Contains(err.Error(), "key=1") {
			t.Errorf("%q: %v, want it refused without being repeated", image, err)
		}
	}
}

// Who asks for the image's server to be checked must not have it fetched unchecked.
func TestImageIsNotFetchedUnchecked(t *testing.T) {
	ca, err := newCA()
	if err != nil {
		t.Fatal(err)
	}
	b := dialled(t, redfishtest.StartVendor(t, "hpe-ilo5"))
	if err := b.InsertMedia(t.Context(), hardware.Media{Image: testImage, CA: ca}); !errors.Is(err, hardware.ErrUnsupported) {
		t.Errorf("%v, want it unsupported", err)
	}
	if err := b.InsertMedia(t.Context(), hardware.Media{Image: "http://198.18.0.1/weft.iso", CA: ca}); err == nil || errors.Is(err, hardware.ErrUnsupported) {
		t.Errorf("%v, want a CA with http refused", err)
	}
}

func dialled(t *testing.T, s *redfishtest.Server) *BMC {
	t.Helper()
	b, err := dial(t.Context(), hardware.Endpoint{Address: s.URL, Username: redfishtest.Username, Password: redfishtest.Password}, quiet(), s.Clock.Pause)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b
}
