package bmc

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// SystemConfig is one ComputerSystem of a BMC.
type SystemConfig struct {
	ID        string // Default: its number, from 1
	Inventory Inventory
	// Machine is the server behind it; nil: a system without a power of its own,
	// as the GPU baseboard is beside the host of a GH200.
	Machine Machine
	POST    POST
	// NoHTTPBoot: UefiHttp is no boot target, as of many BMCs.
	NoHTTPBoot bool
	Console    Console
	Media      Media
}

// system is a ComputerSystem, with the Chassis of the same Id.
type system struct {
	SystemConfig
	bmc           *Server
	path, chassis string
	console       *console // nil without a Machine
	media         *media   // nil without virtual media

	mu          sync.Mutex // guards the fields below
	lastReset   time.Time  // by the BMC's clock
	booted      time.Time  // the same by this computer's clock
	target      Target     // what that boot uses
	httpBootURI string
	indicator   string // IndicatorLED: Off, Lit or Blinking
	restart     bool   // GracefulRestart: power on again when the server has gone off
}

func newSystem(config SystemConfig, number int, bmc *Server) *system {
	if config.ID == "" {
		config.ID = strconv.Itoa(number)
	}
	s := &system{SystemConfig: config, bmc: bmc, path: root + "/Systems/" + config.ID, chassis: root + "/Chassis/" + config.ID, indicator: "Off"}
	if config.Machine != nil {
		s.console = &console{Console: config.Console, machine: config.Machine, number: number}
	}
	if config.Media.Style != NoMedia {
		s.media = newMedia(s, number, bmc.config)
	}
	return s
}

// route adds the requests that only this system has.
func (s *system) route(mux *http.ServeMux) {
	if s.Machine == nil {
		return
	}
	mux.HandleFunc("POST "+s.resetPath(), s.reset)
	mux.HandleFunc("POST "+s.logPath()+clearLogAction, func(w http.ResponseWriter, _ *http.Request) {
		s.bmc.events.clear(s)
		w.WriteHeader(http.StatusNoContent)
	})
	if s.media != nil {
		s.media.route(mux)
	}
	if s.console.webSocket() {
		mux.HandleFunc("GET "+s.console.uri(), s.console.serve)
	}
}

func (s *system) resetPath() string { return s.path + "/Actions/ComputerSystem.Reset" }
func (s *system) logPath() string   { return s.path + "/LogServices/EventLog" }

// notify records an event and ends a GracefulRestart.
func (s *system) notify(e Event, now time.Time) {
	s.mu.Lock()
	if e.Kind == PoweredOn || e.Kind == Reset {
		s.lastReset, s.booted, s.target = now, time.Now(), e.Target
	}
	again := e.Kind == PoweredOff && s.restart
	if e.Kind == PoweredOff {
		s.restart = false
	}
	s.mu.Unlock()

	s.bmc.events.add(now, s, e)
	s.bmc.log.Info("server "+string(e.Kind), "bmc", s.bmc.config.Address.String(), "system", s.ID, "cause", e.Cause)
	if again {
		s.bmc.later(0, "end of GracefulRestart", s.Machine.PowerOn)
	}
}

// power is the state that the BMC reports; a helper is on with its BMC.
func (s *system) power() Power {
	if s.Machine == nil {
		return On
	}
	return s.Machine.Power()
}

// addTo adds the system to the tree, and all that is below it.
func (s *system) addTo(t tree) {
	s.addProcessorsAndMemory(t)
	s.addStorage(t)
	s.addNetwork(t)
	s.addChassis(t)
	if s.Machine != nil {
		s.bmc.events.addTo(t, s)
	}
	if s.media != nil {
		s.media.addTo(t)
	}
	s.addSystem(t)
}

// patchSystem sets the boot override, the asset tag and the indicator; it
// changes nothing unless all of them are valid.
func (s *system) patchSystem(r *http.Request, body map[string]any) (*message, error) {
	indicator := map[string]any{}
	tag := s.Machine.AssetTag()
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

func (s *system) patchAssetTag(tag string) *message {
	fault := s.bmc.Faults.now().assetTag
	switch {
	case tag == s.Machine.AssetTag():
	case fault == AssetTagRefused:
		return notWritable("AssetTag")
	case fault != AssetTagForgotten:
		s.Machine.SetAssetTag(tag)
	}
	return nil
}

func (s *system) patchIndicator(body map[string]any) *message {
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

func (s *system) addSystem(t tree) {
	inv := s.Inventory
	system := resource{
		"SystemType": "Physical", "UUID": inv.UUID, "SerialNumber": inv.Serial, "SKU": inv.SKU,
		"Manufacturer": inv.Manufacturer, "Model": inv.Model, "BiosVersion": inv.BIOSVersion,
		"PowerState": s.power(), "Status": enabled(),
		"ProcessorSummary": resource{"Count": 1, "LogicalProcessorCount": inv.CPUs, "Model": inv.CPUModel, "Status": enabled()},
		"MemorySummary":    resource{"TotalSystemMemoryGiB": float64(inv.MemoryMiB) / 1024, "Status": enabled()},
		"Bios":             link(s.path + "/Bios"), "Processors": link(s.path + "/Processors"),
		"Memory": link(s.path + "/Memory"), "Storage": link(s.path + "/Storage"),
		"SimpleStorage":      link(s.path + "/SimpleStorage"),
		"EthernetInterfaces": link(s.path + "/EthernetInterfaces"),
		"NetworkInterfaces":  link(s.path + "/NetworkInterfaces"),
		"Links":              resource{"Chassis": links(s.chassis), "ManagedBy": links(root + "/Managers/1")},
	}
	if s.media != nil && !s.media.rules.manager {
		system["VirtualMedia"] = link(s.path + "/VirtualMedia")
	}
	if s.Machine != nil {
		maps.Copy(system, s.server())
	}
	t.add(s.path, "#ComputerSystem.v1_21_0.ComputerSystem", "Computer System", system)
	t.add(s.path+"/Bios", "#Bios.v1_2_1.Bios", "BIOS Configuration", resource{
		"Attributes": resource{"BootMode": inv.Firmware, "SerialConsoleRedirection": "Enabled", "PxeNic": "NIC 1"},
	})
}

// server is what the BMC says of a system that is a server of its own.
func (s *system) server() resource {
	s.mu.Lock()
	lastReset, indicator := s.lastReset, s.indicator
	s.mu.Unlock()
	server := resource{
		"AssetTag": s.Machine.AssetTag(), "HostName": "", "Boot": s.bootResource(),
		"BootProgress": resource{"LastState": bootProgress(s.power())},
		"IndicatorLED": indicator, "IndicatorLED@Redfish.AllowableValues": allow("Off", "Lit", "Blinking"),
		"LocationIndicatorActive": indicator != "Off",
		"LogServices":             link(s.path + "/LogServices"),
		"Actions": resource{"#ComputerSystem.Reset": resource{
			"target": s.resetPath(), "ResetType@Redfish.AllowableValues": resetTypes(),
		}},
	}
	if described := s.console.resource(); described != nil {
		server["SerialConsole"] = described
	}
	s.addPOST(server)
	if text := s.lastResetText(lastReset); text != "" {
		server["LastResetTime"] = text
	}
	return server
}

// lastResetText is the LastResetTime that the BMC reports; empty: none.
func (s *system) lastResetText(at time.Time) string {
	if fault := s.bmc.Faults.now().lastReset; fault != nil {
		return *fault
	}
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format(time.RFC3339)
}

// bootProgress reports only what a BMC knows without help from the firmware.
func bootProgress(p Power) string {
	if p == On {
		return "SystemHardwareInitializationComplete"
	}
	return "None"
}
