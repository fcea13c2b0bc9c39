package redfish

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/redfishtest"
)

// FuzzAnswers replaces one resource of a BMC's tree by any content: every call ends, and nothing panics.
func FuzzAnswers(f *testing.F) {
	answers := []string{
		``, `{}`, `null`, `[]`, `"x"`, `{"Members":null}`, `{"Members":[null,{},{"@odata.id":7},{"@odata.id":"//x"}]}`,
		`{"Members":[{"@odata.id":"/redfish/v1"}],"Members@odata.nextLink":"/redfish/v1/Systems"}`,
		`{"Temperatures":[{"ReadingCelsius":1e400,"UpperThresholdCritical":-1}],"Fans":[{"Reading":"x"}],"PowerSupplies":{}}`,
		`{"Sensors":{"@odata.id":"/redfish/v1"},"Thermal":[],"Reading":null,"ReadingUnits":7,"Thresholds":{"UpperCritical":[]}}`,
		`{"Attributes":{"UrlBootFile":7,"HttpDev1Uri":null},"@Redfish.Settings":{"SettingsObject":{"@odata.id":"x"}}}`,
		`{"CertificateString":"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----","CertificateType":"PEM"}`,
		`{"Subscriptions":{"@odata.id":""},"ServiceEnabled":"yes","DeliveryRetryAttempts":-1,"Destination":"::"}`,
		`{"Actions":{"#ComputerSystem.Reset":{"target":"http://198.18.0.1/","ResetType@Redfish.AllowableValues":"On"}},"PowerState":"?"}`,
		`{"Boot":{"BootSourceOverrideTarget@Redfish.AllowableValues":[7,null]},"SerialConsole":[],"Oem":{"Hpe":7,"Dell":[]}}`,
		`{"Inserted":"true","Image":7,"MediaTypes":"CD","Actions":{"#VirtualMedia.InsertMedia":{"target":"../x"}}}`,
	}
	for seed := range uint64(32) {
		f.Add(seed, []byte(answers[seed%uint64(len(answers))]))
	}
	all := slices.DeleteFunc(deeds(), func(d deed) bool { return d.do == nil })
	vendors := redfishtest.Vendors()
	f.Fuzz(func(t *testing.T, seed uint64, answer []byte) {
		random := rand.New(rand.NewPCG(seed, 1))
		v, d := vendors[random.IntN(len(vendors))], all[random.IntN(len(all))]
		tree, err := v.Tree()
		if err != nil {
			t.Fatal(err)
		}
		paths := slices.Sorted(maps.Keys(tree))
		at := paths[random.IntN(len(paths))]
		s := redfishtest.StartVendor(t, v.Name)
		s.Script("GET", at, slices.Repeat([]redfishtest.Answer{{Status: 200, Body: string(answer)}}, 100)...)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		b, err := dial(ctx, hardware.Endpoint{Address: s.URL, Username: redfishtest.Username, Password: redfishtest.Password}, quiet(), s.Clock.Pause)
		if err == nil {
			err = d.do(ctx, b)
			_ = b.Close(ctx)
		}
		if ctx.Err() != nil {
			t.Errorf("%s: %s with another %s does not end: %v", v.Name, d.name, at, err)
		}
	})
}
