package redfishtest_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/hardware/redfishtest"
)

// TestNICs: ports are listed where the trait says, and no reference leads nowhere.
func TestNICs(t *testing.T) {
	for trait, expected := range map[redfishtest.Trait][]string{
		redfishtest.HostInterface:  {"02:00:5E:00:01:01", "02:00:5E:00:01:02", redfishtest.HostInterfaceMAC},
		redfishtest.VLANInterface:  {"02:00:5E:00:01:01", "02:00:5E:00:01:02", "02:00:5E:00:01:01"},
		redfishtest.NICsInAdapters: {"02:00:5E:00:01:01", "02:00:5E:00:01:02"},
	} {
		c := newClient(t, "hpe-ilo5", trait)
		at := sys + "/EthernetInterfaces"
		if trait == redfishtest.NICsInAdapters {
			if c.bmc.Get(at) != nil || c.get(sys)["EthernetInterfaces"] != nil {
				t.Errorf("%s: the system tells ports as well", trait)
			}
			adapter := c.get(references(c.get("/redfish/v1/Chassis/1/NetworkAdapters")["Members"])[0])
			at = references(adapter["NetworkDeviceFunctions"])[0]
		}
		var macs []string
		for _, port := range references(c.get(at)["Members"]) {
			nic := c.get(port)
			if function, ok := nic["Ethernet"].(resource); ok {
				nic = function
			}
			mac, _ := nic["MACAddress"].(string)
			macs = append(macs, mac)
		}
		if !slices.Equal(macs, expected) {
			t.Errorf("%s: ports %q, want %q", trait, macs, expected)
		}
	}
}

// TestModeUnchanged: the mode that is in force is refused, another one and none are taken.
func TestModeUnchanged(t *testing.T) {
	c := newClient(t, "hpe-ilo5", redfishtest.ModeUnchanged)
	c.want(http.StatusBadRequest, "PropertyValueConflict", http.MethodPatch, sys, pxe)
	c.want(http.StatusOK, "Once", http.MethodPatch, sys, strings.Replace(pxe, "UEFI", "Legacy", 1))
	c.want(http.StatusOK, "Once", http.MethodPatch, sys, `{"Boot":{"BootSourceOverrideEnabled":"Once","BootSourceOverrideTarget":"Pxe"}}`)
}
