package redfish

import (
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/lab/bmc"
	"github.com/rackweft/rackweft/lab/bmc/bmctest"
)

func TestAssetTag(t *testing.T) {
	const (
		hpe      = "/redfish/v1/Systems/1"
		dell     = "/redfish/v1/Systems/System.Embedded.1"
		chassis  = "/redfish/v1/Chassis/1"
		forgets  = "a BMC that says 200 and keeps the old tag"
		tag, old = "rw-0123456789abcdef0123456789ab", "old tag"
	)
	link := func(at string) map[string]any {
		return map[string]any{"Chassis": []any{map[string]any{"@odata.id": at}}}
	}
	tests := map[string]struct {
		vendor      string
		prepare     func(m *mock)
		wantOld     string
		wantWrites  []string
		unsupported bool
	}{
		"in the system": {
			vendor:  "hpe-ilo5",
			prepare: func(m *mock) { m.set(hpe, "AssetTag", old) },
			wantOld: old, wantWrites: []string{hpe},
		},
		"blanks are an empty tag": {
			vendor:     "hpe-ilo5",
			prepare:    func(m *mock) { m.set(hpe, "AssetTag", strings.Repeat(" ", 32)) },
			wantWrites: []string{hpe},
		},
		"null is an empty tag": {
			vendor:     "hpe-ilo5",
			prepare:    func(m *mock) { m.set(hpe, "AssetTag", nil) },
			wantWrites: []string{hpe},
		},
		"a read-only system with a settings object": {
			vendor: "dell-idrac10",
			prepare: func(m *mock) {
				m.set(dell, "AssetTag", old)
				m.set(dell+"/Settings", "AssetTag", "")
				m.fail(http.MethodPatch, dell, says(http.StatusBadRequest, "Base.1.8.PropertyNotWritable"))
			},
			wantOld: old, wantWrites: []string{dell, dell + "/Settings"},
		},
		"only the chassis has one": {
			vendor: "supermicro-x10",
			prepare: func(m *mock) {
				m.set(hpe, "Links", link(chassis))
				m.tree[chassis] = map[string]any{"@odata.id": chassis, "AssetTag": old}
			},
			wantOld: old, wantWrites: []string{chassis},
		},
		"nobody has one": {
			vendor: "supermicro-x10", prepare: func(*mock) {}, unsupported: true,
		},
		"a licence is missing": {
			vendor: "hpe-ilo5",
			prepare: func(m *mock) {
				m.set(hpe, "AssetTag", old)
				m.fail(http.MethodPatch, hpe, says(http.StatusForbidden, "SMC.1.0.OemLicenseNotPassed"))
			},
			wantOld: old, wantWrites: []string{hpe}, unsupported: true,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := vendorMock(t, test.vendor)
			test.prepare(m)
			b, _ := m.open(t, m.endpoint())
			got, err := b.AssetTag(t.Context())
			if test.wantWrites == nil {
				if !errors.Is(err, hardware.ErrUnsupported) {
					t.Errorf("read: %q, %v, want ErrUnsupported", got, err)
				}
			} else if err != nil || got != test.wantOld {
				t.Errorf("read: %q, %v, want %q", got, err, test.wantOld)
			}
			err = b.SetAssetTag(t.Context(), tag)
			if test.unsupported != errors.Is(err, hardware.ErrUnsupported) || !test.unsupported && err != nil {
				t.Errorf("write: %v, want unsupported: %t", err, test.unsupported)
			}
			var writes []string
			for _, w := range m.sent(http.MethodPatch) {
				at, body, _ := strings.Cut(w, " ")
				writes = append(writes, at)
				if want := `{"AssetTag":"` + tag + `"}`; body != want {
					t.Errorf("wrote %s, want %s", body, want)
				}
			}
			if diff := cmp.Diff(test.wantWrites, writes); diff != "" {
				t.Error(diff)
			}
			if test.unsupported {
				return
			}
			if err := b.SetAssetTag(t.Context(), test.wantOld); err != nil {
				t.Errorf("put the old tag back: %v", err)
			}
		})
	}
	t.Run(forgets, func(t *testing.T) {
		s := bmctest.Start(t)
		s.SetAssetTag(old)
		s.BMC.SetAssetTagFault(bmc.AssetTagForgotten)
		p := &pauses{}
		b, err := dial(t.Context(), hardware.Endpoint{Address: s.URL, Username: bmctest.Username, Password: bmctest.Password}, slog.New(slog.DiscardHandler), p.pause)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = b.Close(t.Context()) }()
		if err := b.SetAssetTag(t.Context(), tag); !errors.Is(err, hardware.ErrUnsupported) || strings.Contains(err.Error(), tag) {
			t.Errorf("write: %v, want ErrUnsupported without the tag itself", err)
		}
		s.BMC.SetAssetTagFault(bmc.AssetTagRefused)
		if err := b.SetAssetTag(t.Context(), tag); !errors.Is(err, hardware.ErrUnsupported) {
			t.Errorf("write to a BMC that refuses it: %v, want ErrUnsupported", err)
		}
		s.BMC.SetAssetTagFault(bmc.AssetTagKept)
		if err := b.SetAssetTag(t.Context(), tag); err != nil || s.AssetTag() != tag {
			t.Errorf("write: %v, the server has %q", err, s.AssetTag())
		}
	})
}

// BMCs repeat the value that they refuse, and the tag of an attempt is a secret.
func TestRefusedAssetTagIsNotRepeated(t *testing.T) {
	const at, tag = "/redfish/v1/Systems/1", "rw-0123456789abcdef"
	m := vendorMock(t, "hpe-ilo5")
	m.set(at, "AssetTag", "old")
	m.fail(http.MethodPatch, at, answers(http.StatusBadRequest, `{"error":{"code":"x","message":"The value '`+tag+`' is not in the list"}}`))
	b, _ := m.open(t, m.endpoint())
	err := b.SetAssetTag(t.Context(), tag)
	if !errors.Is(err, hardware.ErrUnsupported) || strings.Contains(err.Error(), tag) || !strings.Contains(err.Error(), "is not in the list") {
		t.Errorf("got %v, want the BMC's words without the tag", err)
	}
}

func TestInvalidAssetTags(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	b, _ := m.open(t, m.endpoint())
	for _, tag := range []string{strings.Repeat("x", hardware.MaxAssetTag+1), "a\nb", "a\x7f"} {
		if err := b.SetAssetTag(t.Context(), tag); err == nil || errors.Is(err, hardware.ErrUnsupported) {
			t.Errorf("%q: %v, want a refusal of the tag itself", tag, err)
		}
	}
	if writes := m.sent(http.MethodPatch); len(writes) != 0 {
		t.Errorf("the BMC was sent %q", writes)
	}
}
