package bmc_test

import (
	"testing"

	"github.com/rackweft/rackweft/lab/bmc"
)

// Two servers and a helper behind one BMC.
func TestSeveralSystems(t *testing.T) {
	second := &fakeMachine{power: bmc.Off}
	server, first, address := serve(t, func(c *bmc.Config) {
		helper := bmc.SystemConfig{ID: "HGX_Baseboard_0", Inventory: bmc.Inventory{UUID: "6ba7b810-9dad-11d1-80b4-00c04fd430c0", CPUs: 1}}
		c.Systems[0].ID = "System_0"
		c.Systems = append([]bmc.SystemConfig{helper}, c.Systems[0], bmc.SystemConfig{ID: "System_1", Machine: second,
			Inventory: bmc.Inventory{UUID: "6ba7b810-9dad-11d1-80b4-00c04fd430c1", Firmware: bmc.Legacy}})
	})
	first.notify = func(e bmc.Event) { e.System = "System_0"; server.Notify(e) }
	second.notify = func(e bmc.Event) { e.System = "System_1"; server.Notify(e) }
	c := newClient(t, address)
	c.crawl()
	systems := c.want(200, "GET", "/redfish/v1/Systems", "")
	if systems["Members@odata.count"] != 3.0 {
		t.Fatalf("%v systems, want 3", systems["Members@odata.count"])
	}

	const helper, one, two = "/redfish/v1/Systems/HGX_Baseboard_0", "/redfish/v1/Systems/System_0", "/redfish/v1/Systems/System_1"
	body := c.want(200, "GET", helper, "")
	if body["Actions"] != nil || body["Boot"] != nil || body["PowerState"] != "On" {
		t.Errorf("the helper has actions %v, boot %v, power %v", body["Actions"], body["Boot"], body["PowerState"])
	}
	c.want(404, "POST", helper+"/Actions/ComputerSystem.Reset", `{"ResetType":"On"}`)
	c.want(405, "PATCH", helper, `{"Boot":{"BootSourceOverrideTarget":"Pxe"}}`)

	c.want(200, "PATCH", two, `{"Boot":{"BootSourceOverrideTarget":"Hdd","BootSourceOverrideEnabled":"Once"},"AssetTag":"two","IndicatorLED":"Lit"}`)
	c.want(400, "PATCH", two, `{"Boot":{"BootSourceOverrideTarget":"UefiHttp"}}`) // it has a BIOS
	c.want(204, "POST", two+"/Actions/ComputerSystem.Reset", `{"ResetType":"On"}`)
	c.want(409, "POST", two+"/Actions/ComputerSystem.Reset", `{"ResetType":"On"}`)
	if first.Power() != bmc.Off || second.Power() != bmc.On || len(second.booted) != 1 || second.booted[0] != bmc.Hdd {
		t.Errorf("power %s and %s, the second has booted from %v", first.Power(), second.Power(), second.booted)
	}
	body = c.want(200, "GET", one, "")
	if body["AssetTag"] != "" || body["IndicatorLED"] != "Off" || body["LastResetTime"] != nil || body["PowerState"] != "Off" {
		t.Errorf("the first system has changed too: %v", body)
	}
	for _, log := range []struct {
		system string
		want   float64
	}{{one, 0}, {two, 1}} {
		entries := c.want(200, "GET", log.system+"/LogServices/EventLog/Entries", "")
		if entries["Members@odata.count"] != log.want {
			t.Errorf("%s has %v log entries, want %v", log.system, entries["Members@odata.count"], log.want)
		}
	}
	c.want(204, "POST", one+"/LogServices/EventLog/Actions/LogService.ClearLog", "{}")
	if entries := c.want(200, "GET", two+"/LogServices/EventLog/Entries", ""); entries["Members@odata.count"] != 1.0 {
		t.Error("the first system's ClearLog has emptied the second's log")
	}
}
