package bmc

import (
	"net/http"
	"strings"
	"time"
)

// resetManager restarts the BMC as far as a client can see: its sessions end.
func (s *Server) resetManager(w http.ResponseWriter, _ *http.Request) {
	s.sessions.clear()
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) addManager(t tree) {
	at := root + "/Managers/1"
	var systems, chassis []string
	overSSH, described, media := false, false, false
	for _, one := range s.systems {
		systems, chassis = append(systems, one.path), append(chassis, one.chassis)
		media = media || one.media != nil && one.media.rules.manager
		if one.console != nil && one.console.SSH() {
			overSSH = true
			described = described || one.console.Place == InManager
		}
	}
	manager := resource{
		"ManagerType": "BMC", "Model": "rackweft lab BMC", "FirmwareVersion": firmwareVersion, "UUID": s.systems[0].Inventory.UUID,
		"PowerState": "On", "Status": enabled(), "DateTime": s.time().UTC().Format(time.RFC3339), "DateTimeLocalOffset": "+00:00",
		"LastResetTime":      s.started.UTC().Format(time.RFC3339),
		"NetworkProtocol":    link(at + "/NetworkProtocol"),
		"EthernetInterfaces": link(at + "/EthernetInterfaces"),
		"Links": resource{"ManagerForServers": links(systems...), "ManagerForChassis": links(chassis...),
			"ManagerInChassis": link(chassis[0])},
		"Actions": resource{"#Manager.Reset": resource{
			"target": managerResetPath, "ResetType@Redfish.AllowableValues": allow("GracefulRestart", "ForceRestart"),
		}},
	}
	if described {
		manager["SerialConsole"] = resource{"ServiceEnabled": true, "MaxConcurrentSessions": 1, "ConnectTypesSupported": allow("SSH")}
	}
	if media {
		manager["VirtualMedia"] = link(at + "/VirtualMedia")
	}
	t.add(at, "#Manager.v1_18_0.Manager", "Manager", manager)
	t.collect(root+"/Managers", "Manager", "Manager Collection")
	t.add(at+"/NetworkProtocol", "#ManagerNetworkProtocol.v1_9_1.ManagerNetworkProtocol", "Manager Network Protocol", resource{
		"Status": enabled(), "HostName": "bmc-" + strings.ToLower(s.systems[0].Inventory.Serial),
		"HTTP": resource{"ProtocolEnabled": false, "Port": 80}, "HTTPS": resource{"ProtocolEnabled": true, "Port": 443},
		"IPMI": resource{"ProtocolEnabled": false, "Port": 623}, "SSH": resource{"ProtocolEnabled": overSSH, "Port": 22},
	})
	t.add(at+"/EthernetInterfaces/1", "#EthernetInterface.v1_9_0.EthernetInterface", "Manager Ethernet Interface", resource{
		"InterfaceEnabled": true, "LinkStatus": "LinkUp", "Status": enabled(),
		"IPv4Addresses": []resource{{"Address": s.config.Address.String(), "SubnetMask": "255.255.255.0", "AddressOrigin": "Static"}},
	})
	t.collect(at+"/EthernetInterfaces", "EthernetInterface", "Manager Ethernet Interface Collection")
}

const firmwareVersion = "1.0.0"

func (s *Server) addUpdateService(t tree) {
	at := root + "/UpdateService"
	t.add(at+"/FirmwareInventory/BMC", "#SoftwareInventory.v1_10_0.SoftwareInventory", "BMC", resource{
		"Version": firmwareVersion, "Updateable": false, "Status": enabled(),
	})
	t.add(at+"/FirmwareInventory/BIOS", "#SoftwareInventory.v1_10_0.SoftwareInventory", "BIOS", resource{
		"Version": s.systems[0].Inventory.BIOSVersion, "Updateable": false, "Status": enabled(),
	})
	t.collect(at+"/FirmwareInventory", "SoftwareInventory", "Firmware Inventory Collection")
	t.add(at, "#UpdateService.v1_12_0.UpdateService", "Update Service", resource{
		"ServiceEnabled": false, "Status": resource{"State": "Disabled"}, "FirmwareInventory": link(at + "/FirmwareInventory"),
	})
}
