package bmc_test

import (
	"testing"
	"time"

	"github.com/rackweft/rackweft/lab/bmc"
)

func TestPOST(t *testing.T) {
	const boot = `{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once"}}`
	hpe := func(c client) map[string]any {
		oem, _ := c.want(200, "GET", system, "")["Oem"].(map[string]any)
		state, _ := oem["Hpe"].(map[string]any)
		return state
	}
	tests := []struct {
		name    string
		post    bmc.POST
		target  bmc.Target
		state   string
		refused bool
	}{
		{"in POST", bmc.POST{Duration: time.Hour}, bmc.None, "InPost", true},
		{"finished", bmc.POST{Duration: 1}, bmc.None, "FinishedPost", false},
		{"disk without a system", bmc.POST{Duration: 1, NoDisk: true}, bmc.None, "InPostDiscoveryComplete", false},
		{"the same, ordered", bmc.POST{Duration: 1, NoDisk: true}, bmc.Hdd, "InPostDiscoveryComplete", false},
		{"network beside an empty disk", bmc.POST{Duration: 1, NoDisk: true}, bmc.Pxe, "FinishedPost", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, machine, address := serve(t, func(c *bmc.Config) { c.Systems[0].POST = tt.post })
			c := newClient(t, address)
			if got := hpe(c); got["PostState"] != "PowerOff" || got["PostDiscoveryCompleteTimeStamp"] != nil {
				t.Errorf("%v before power-on", got)
			}
			c.want(200, "PATCH", system, boot) // a server that is off is not in POST
			machine.override = bmc.Override{Target: tt.target}
			_ = machine.become(bmc.On, bmc.PoweredOn)
			got := hpe(c)
			if got["PostState"] != tt.state || (got["PostDiscoveryCompleteTimeStamp"] == nil) != tt.refused {
				t.Errorf("%v, want %s", got, tt.state)
			}
			if !tt.refused {
				c.want(200, "PATCH", system, boot)
				return
			}
			refused := c.want(400, "PATCH", system, boot)
			described, _ := refused["error"].(map[string]any)
			if described["code"] != "iLO.2.14.UnableToModifyDuringSystemPOST" || machine.Override().Target != tt.target {
				t.Errorf("refused with %v, override %v", refused, machine.Override())
			}
			c.want(200, "PATCH", system, `{"IndicatorLED":"Lit"}`) // only the boot waits
		})
	}
}

func TestNoPOST(t *testing.T) {
	_, _, address := serve(t, nil)
	if oem := newClient(t, address).want(200, "GET", system, "")["Oem"]; oem != nil {
		t.Errorf("Oem %v of a BMC that reports no POST", oem)
	}
}
