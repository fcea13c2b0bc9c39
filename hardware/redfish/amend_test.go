package redfish

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/hardware"
)

// wishes are refusals whose messages name what is wrong.
func wishes(status int, id, text string, args ...string) fault {
	list := make([]string, len(args))
	for i, arg := range args {
		list[i] = fmt.Sprintf("%q", arg)
	}
	return answers(status, fmt.Sprintf(`{"error":{"@Message.ExtendedInfo":[{"MessageId":%q,"Message":%q,"MessageArgs":[%s]}]}}`, id, text, strings.Join(list, ",")))
}

// boots are the Boot objects that were written, with the path where it is not the system's and the entity tag where it is
// the test's.
func (m *mock) boots() (list []string) {
	for _, line := range m.sent(http.MethodPatch) {
		line = strings.TrimPrefix(line, hpeSystem+" ")
		line = strings.NewReplacer(`{"Boot":{`, "", "}}", "", "BootSourceOverride", "", `"`, "").Replace(line)
		list = append(list, line)
	}
	return list
}

// TestRefusedBoots: each refusal leads to one more write that means the same, and to no write that does not.
func TestRefusedBoots(t *testing.T) {
	boot := func(body map[string]any) map[string]any { return body["Boot"].(map[string]any) }
	needs := func(field, text string) func(*mock) {
		return func(m *mock) {
			m.judge = func(_, _ string, body map[string]any) fault {
				if boot(body)[field] == nil {
					return wishes(400, "Base.1.8.PropertyMissing", text, field)
				}
				return nil
			}
		}
	}
	refuses := func(id, field string, named bool) func(*mock) {
		return func(m *mock) {
			m.judge = func(_, _ string, body map[string]any) fault {
				switch {
				case boot(body)[field] == nil:
					return nil
				case named:
					return wishes(400, id, "The property is refused.", "#/Boot/"+field)
				}
				return wishes(400, id, "The property "+field+" is refused.")
			}
		}
	}
	tree := func(key string, value any) func(*mock) {
		return func(m *mock) { m.tree[hpeSystem]["Boot"].(map[string]any)[key] = value }
	}
	uefi := hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeUEFI}
	tests := map[string]struct {
		prepare []func(*mock)
		boot    hardware.Boot
		want    []string
		err     error
	}{
		"mode missing": {[]func(*mock){needs("BootSourceOverrideMode", "missing")}, hardware.Boot{Target: hardware.BootPXE},
			[]string{"Enabled:Once,Target:Pxe", "Enabled:Once,Mode:UEFI,Target:Pxe"}, nil},
		"mode right already": {[]func(*mock){refuses("Base.1.8.PropertyValueConflict", "BootSourceOverrideMode", true)}, uefi,
			[]string{"Enabled:Once,Mode:UEFI,Target:Pxe", "Enabled:Once,Target:Pxe"}, nil},
		"mode not writable": {[]func(*mock){refuses("Base.1.8.PropertyNotWritable", "BootSourceOverrideMode", false)}, uefi,
			[]string{"Enabled:Once,Mode:UEFI,Target:Pxe", "Enabled:Once,Target:Pxe"}, nil},
		"mode not writable, and another": {[]func(*mock){refuses("Base.1.8.PropertyNotWritable", "BootSourceOverrideMode", true), tree("BootSourceOverrideMode", "Legacy")}, uefi,
			[]string{"Enabled:Once,Mode:UEFI,Target:Pxe"}, hardware.ErrUnsupported},
		"target not writable": {[]func(*mock){refuses("Base.1.8.PropertyNotWritable", "BootSourceOverrideTarget", true)}, uefi,
			[]string{"Enabled:Once,Mode:UEFI,Target:Pxe"}, hardware.ErrUnsupported},
		"only UefiPxe, listed": {[]func(*mock){tree("BootSourceOverrideTarget@Redfish.AllowableValues", []any{"None", "UefiPxe"})}, uefi,
			[]string{"Enabled:Once,Mode:UEFI,Target:UefiPxe"}, nil},
		"only UefiPxe, not listed": {[]func(*mock){tree("BootSourceOverrideTarget@Redfish.AllowableValues", nil), func(m *mock) {
			m.judge = func(_, _ string, body map[string]any) fault {
				if boot(body)["BootSourceOverrideTarget"] == "Pxe" {
					return wishes(400, "Base.1.8.PropertyValueNotInList", "not in the list", "Pxe", "BootSourceOverrideTarget")
				}
				return nil
			}
		}}, uefi, []string{"Enabled:Once,Mode:UEFI,Target:Pxe", "Enabled:Once,Mode:UEFI,Target:UefiPxe"}, nil},
		"only UefiPxe, Legacy asked": {[]func(*mock){tree("BootSourceOverrideTarget@Redfish.AllowableValues", []any{"None", "UefiPxe"})},
			hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeLegacy}, nil, hardware.ErrUnsupported},
		"below the system": {[]func(*mock){func(m *mock) {
			m.tree[hpeSystem+"/Pending"] = map[string]any{"Boot": map[string]any{}}
			m.judge = func(at, _ string, _ map[string]any) fault {
				if at == hpeSystem {
					return wishes(400, "Ami.1.0.OperationSupportedInFutureStateURI", "Use "+hpeSystem+"/Pending.", hpeSystem+"/Pending")
				}
				return nil
			}
		}}, uefi, []string{"Enabled:Once,Mode:UEFI,Target:Pxe", hpeSystem + "/Pending Enabled:Once,Mode:UEFI,Target:Pxe"}, nil},
		"its settings object": {[]func(*mock){func(m *mock) {
			m.tree[hpeSystem]["@Redfish.Settings"] = map[string]any{"SettingsObject": map[string]any{"@odata.id": hpeSystem + "/Settings"}}
			m.tree[hpeSystem+"/Settings"] = map[string]any{"Boot": map[string]any{}}
			m.judge = func(at, _ string, _ map[string]any) fault {
				if at == hpeSystem {
					return wishes(405, "Base.1.8.OperationNotAllowed", "read-only")
				}
				return nil
			}
		}}, uefi, []string{"Enabled:Once,Mode:UEFI,Target:Pxe", hpeSystem + "/Settings Enabled:Once,Mode:UEFI,Target:Pxe"}, nil},
		"another host's resource": {[]func(*mock){func(m *mock) {
			m.judge = func(string, string, map[string]any) fault {
				return wishes(400, "Ami.1.0.OperationSupportedInFutureStateURI", "Use https://198.18.0.66/redfish/v1/Systems/9/SD.")
			}
		}}, uefi, []string{"Enabled:Once,Mode:UEFI,Target:Pxe"}, errAny},
		"If-Match required": {[]func(*mock){func(m *mock) {
			delete(m.tree[hpeSystem], "@odata.etag")
			m.judge = func(_, ifMatch string, _ map[string]any) fault {
				if ifMatch == "" {
					return wishes(428, "Base.1.8.PreconditionRequired", "If-Match")
				}
				return nil
			}
		}}, uefi, []string{"Enabled:Once,Mode:UEFI,Target:Pxe", "Enabled:Once,Mode:UEFI,Target:Pxe"}, nil},
		"no boot override": {[]func(*mock){func(m *mock) { m.tree[hpeSystem]["Boot"] = map[string]any{} }}, uefi, nil, hardware.ErrUnsupported},
		"no licence": {[]func(*mock){func(m *mock) {
			m.judge = func(string, string, map[string]any) fault { return says(403, "SMC.1.0.OemLicenseNotPassed") }
		}}, uefi, []string{"Enabled:Once,Mode:UEFI,Target:Pxe"}, hardware.ErrUnsupported},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := vendorMock(t, "hpe-ilo5")
			for _, prepare := range test.prepare {
				prepare(m)
			}
			b, _ := m.open(t, m.endpoint())
			err := b.SetBootOnce(t.Context(), test.boot)
			if test.err == nil && err != nil || test.err == errAny && err == nil || test.err != nil && test.err != errAny && !errors.Is(err, test.err) {
				t.Errorf("error %v, want %v", err, test.err)
			}
			if diff := cmp.Diff(test.want, m.boots()); diff != "" {
				t.Error(diff)
			}
			if _, err := b.PowerState(t.Context()); err != nil {
				t.Errorf("other verbs: %v", err)
			}
		})
	}
}

var errAny = errors.New("any")

// TestEndlessRefusals: a BMC that refuses one thing after the other is asked a few times, and quoted in full.
func TestEndlessRefusals(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	said := []fault{
		wishes(412, "Base.1.8.PreconditionFailed", "first"), wishes(412, "Base.1.8.PreconditionFailed", "first"), wishes(412, "Base.1.8.PreconditionFailed", "first"),
		wishes(400, "Base.1.8.PropertyNotWritable", "second", "BootSourceOverrideMode"),
		wishes(400, "Base.1.8.PropertyMissing", "third", "BootSourceOverrideMode"),
	}
	m.judge = func(string, string, map[string]any) fault {
		if len(said) == 0 {
			return wishes(400, "Base.1.8.PropertyMissing", "last", "BootSourceOverrideMode")
		}
		f := said[0]
		said = said[1:]
		return f
	}
	b, _ := m.open(t, m.endpoint())
	err := b.SetBootOnce(t.Context(), hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeUEFI})
	if err == nil {
		t.Fatal("it was taken")
	}
	for _, word := range []string{"first", "second", "third"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %v does not quote %q", err, word)
		}
	}
	if writes := m.boots(); len(writes) > 5 || slices.ContainsFunc(writes, func(s string) bool { return strings.Contains(s, "Legacy") }) {
		t.Errorf("writes %q", writes)
	}
}

// TestFallBackToLegacy: a BMC that sets Legacy where the mode is not sent along does not keep it.
func TestFallBackToLegacy(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	b, _ := m.open(t, m.endpoint())
	m.judge = func(_, _ string, body map[string]any) fault {
		if boot := body["Boot"].(map[string]any); boot["BootSourceOverrideMode"] == nil {
			boot["BootSourceOverrideMode"] = "Legacy"
		}
		return nil
	}
	if err := b.SetBootOnce(t.Context(), hardware.Boot{Target: hardware.BootPXE}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"Enabled:Once,Target:Pxe", "Enabled:Once,Mode:UEFI,Target:Pxe"}, m.boots()); diff != "" {
		t.Error(diff)
	}
}

// TestMediaAndSetup are boot targets with a name of each vendor's own.
func TestMediaAndSetup(t *testing.T) {
	for _, test := range []struct {
		vendor string
		boot   hardware.Boot
		target string
	}{
		{"hpe-ilo5", hardware.Boot{Target: hardware.BootMedia}, "Cd"},
		{"hpe-ilo5", hardware.Boot{Target: hardware.BootSetup}, "BiosSetup"},
		{"supermicro-x10", hardware.Boot{Target: hardware.BootMedia, Mode: hardware.ModeUEFI}, "UefiUsbCd"},
		{"supermicro-x10", hardware.Boot{Target: hardware.BootMedia}, "UsbCd"},
	} {
		m := vendorMock(t, test.vendor)
		boot := m.tree[hpeSystem]["Boot"].(map[string]any)
		boot["BootSourceOverrideTarget@Redfish.AllowableValues"] = []any{"None", "Pxe", "Cd", "UsbCd", "UefiUsbCd", "BiosSetup"}
		b, _ := m.open(t, m.endpoint())
		if err := b.SetBootOnce(t.Context(), test.boot); err != nil {
			t.Fatal(err)
		}
		if boot["BootSourceOverrideTarget"] != test.target {
			t.Errorf("%s: %s boots from %v, want %s", test.vendor, test.boot.Target, boot["BootSourceOverrideTarget"], test.target)
		}
	}
}

// FuzzAmend: whatever a BMC says to a write, it ends, keeps its meaning, and stays below the system.
func FuzzAmend(f *testing.F) {
	f.Add(400, []byte(`{"error":{"@Message.ExtendedInfo":[{"MessageId":"Base.1.8.PropertyMissing","Message":"x","MessageArgs":["BootSourceOverrideMode"]}]}}`))
	f.Add(400, []byte(`{"error":{"@Message.ExtendedInfo":[{"MessageId":"Base.1.8.PropertyNotWritable","Message":"BootSourceOverrideTarget","RelatedProperties":["#/Boot/BootSourceOverrideMode"]}]}}`))
	f.Add(400, []byte(`{"error":{"@Message.ExtendedInfo":[{"MessageId":"Ami.1.0.OperationSupportedInFutureStateURI","Message":"/redfish/v1/Systems/2/SD","MessageArgs":[7,null]}]}}`))
	f.Add(412, []byte(`<html>`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		where := bootResource{path: hpeSystem, boot: bootSettings{Target: "None", Mode: "UEFI"}}
		w := bootPatch{Enabled: "Once", Mode: "UEFI", Target: "Pxe"}.write(where, []text{"Pxe", "UefiPxe"})
		no := &refusal{method: http.MethodPatch, path: hpeSystem, status: status, messages: parseMessages(body)}
		tried := map[string]bool{}
		for n := 0; ; n++ {
			if amended, _ := w.amend(no, tried); !amended {
				break
			}
			if n > 20 {
				t.Fatal("it does not end")
			}
		}
		target, _ := w.fields[bootTarget].(text)
		mode, _ := w.fields[bootMode].(text)
		if target != "Pxe" && target != "UefiPxe" || w.fields[bootEnabled] != text("Once") || mode != "" && mode != "UEFI" || !strings.HasPrefix(w.path, hpeSystem) {
			t.Errorf("%s %v", w.path, w.fields)
		}
	})
}
