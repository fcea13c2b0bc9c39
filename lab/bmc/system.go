package bmc

import (
	"net/http"
	"slices"
	"time"
)

// patchSystem sets the boot override, the asset tag and the indicator; it
// changes nothing unless all of them are valid.
func (s *Server) patchSystem(r *http.Request, body map[string]any) (*message, error) {
	indicator := map[string]any{}
	tag := s.machine.AssetTag()
	for name, value := range body {
		switch name {
		case "Boot":
		case "AssetTag":
			text, ok := value.(string)
			if !ok || len(text) > maxAssetTag {
				return badValue(name, value), nil
			}
			tag = text
		case "IndicatorLED", "LocationIndicatorActive":
			indicator[name] = value
		default:
			return unknownProperty(name), nil
		}
	}
	if boot, given := body["Boot"]; given {
		properties, ok := boot.(map[string]any)
		if !ok {
			return badValue("Boot", boot), nil
		}
		if refused, err := s.patchBoot(r, properties); refused != nil || err != nil {
			return refused, err
		}
	}
	if refused := s.patchIndicator(indicator); refused != nil {
		return refused, nil
	}
	return s.patchAssetTag(tag), nil
}

// maxAssetTag is HPE's limit: 32 characters.
const maxAssetTag = 32

func (s *Server) patchAssetTag(tag string) *message {
	s.mu.Lock()
	fault := s.faults.assetTag
	s.mu.Unlock()
	switch {
	case tag == s.machine.AssetTag():
	case fault == AssetTagRefused:
		return notWritable("AssetTag")
	case fault != AssetTagForgotten:
		s.machine.SetAssetTag(tag)
	}
	return nil
}

func (s *Server) patchIndicator(body map[string]any) *message {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, value := range body {
		switch name {
		case "IndicatorLED":
			text, ok := value.(string)
			if !ok || !slices.Contains([]string{"Off", "Lit", "Blinking"}, text) {
				return badValue(name, value)
			}
			s.indicator = text
		case "LocationIndicatorActive":
			active, ok := value.(bool)
			if !ok {
				return badValue(name, value)
			}
			s.indicator = "Off"
			if active {
				s.indicator = "Blinking"
			}
		default:
			return unknownProperty(name)
		}
	}
	return nil
}

func (s *Server) addSystem(t tree) {
	inv := s.config.Inventory
	power := s.machine.Power()
	s.mu.Lock()
	lastReset, indicator := s.lastReset, s.indicator
	s.mu.Unlock()

	system := resource{
		"SystemType": "Physical", "UUID": inv.UUID, "SerialNumber": inv.Serial, "SKU": inv.SKU,
		"Manufacturer": inv.Manufacturer, "Model": inv.Model, "AssetTag": s.machine.AssetTag(), "BiosVersion": inv.BIOSVersion,
		"HostName": "", "PowerState": power, "Status": enabled(), "Boot": s.bootResource(),
		"BootProgress": resource{"LastState": bootProgress(power)},
		"IndicatorLED": indicator, "IndicatorLED@Redfish.AllowableValues": allow("Off", "Lit", "Blinking"),
		"LocationIndicatorActive": indicator != "Off",
		"ProcessorSummary":        resource{"Count": 1, "LogicalProcessorCount": inv.CPUs, "Model": inv.CPUModel, "Status": enabled()},
		"MemorySummary":           resource{"TotalSystemMemoryGiB": float64(inv.MemoryMiB) / 1024, "Status": enabled()},
		"SerialConsole": resource{
			"MaxConcurrentSessions": 1,
			"WebSocket":             resource{"ServiceEnabled": true, "Interactive": true, "ConsoleURI": consoleURI},
		},
		"Bios": link(systemPath + "/Bios"), "Processors": link(systemPath + "/Processors"),
		"Memory": link(systemPath + "/Memory"), "Storage": link(systemPath + "/Storage"),
		"SimpleStorage":      link(systemPath + "/SimpleStorage"),
		"EthernetInterfaces": link(systemPath + "/EthernetInterfaces"),
		"NetworkInterfaces":  link(systemPath + "/NetworkInterfaces"),
		"LogServices":        link(systemPath + "/LogServices"),
		"Links":              resource{"Chassis": links(root + "/Chassis/1"), "ManagedBy": links(root + "/Managers/1")},
		"Actions": resource{"#ComputerSystem.Reset": resource{
			"target": resetPath, "ResetType@Redfish.AllowableValues": resetTypes(),
		}},
	}
	if !lastReset.IsZero() {
		system["LastResetTime"] = lastReset.UTC().Format(time.RFC3339)
	}
	t.add(systemPath, "#ComputerSystem.v1_21_0.ComputerSystem", "Computer System", system)
	t.collect(root+"/Systems", "ComputerSystem", "Computer System Collection")
	t.add(systemPath+"/Bios", "#Bios.v1_2_1.Bios", "BIOS Configuration", resource{
		"Attributes": resource{"BootMode": inv.Firmware, "SerialConsoleRedirection": "Enabled", "PxeNic": "NIC 1"},
	})
}

// bootProgress reports only what a BMC knows without help from the firmware.
func bootProgress(p Power) string {
	if p == On {
		return "SystemHardwareInitializationComplete"
	}
	return "None"
}
