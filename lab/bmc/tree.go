package bmc

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	root       = "/redfish/v1"
	systemPath = root + "/Systems/1"
	resetPath  = systemPath + "/Actions/ComputerSystem.Reset"
	logPath    = systemPath + "/LogServices/EventLog"
	ssePath    = root + "/EventService/SSE"
	consoleURI = "/console0" // OpenBMC's path
)

// resource is one JSON object of the service.
type resource map[string]any

// tree holds every resource by its path, without a trailing slash.
type tree map[string]resource

// add adds a resource with the properties common to all.
func (t tree) add(at, kind, name string, properties resource) {
	if _, set := properties["Id"]; !set {
		properties["Id"] = path.Base(at)
	}
	properties["@odata.id"], properties["@odata.type"], properties["Name"] = at, kind, name
	t[at] = properties
}

// collect adds the collection at a path; its members are the resources directly
// below it.
func (t tree) collect(at, kind, name string) {
	members := []resource{}
	for _, one := range t.below(at) {
		members = append(members, link(one))
	}
	t[at] = resource{
		"@odata.id": at, "@odata.type": fmt.Sprintf("#%sCollection.%sCollection", kind, kind), "Name": name,
		"Members": members, "Members@odata.count": len(members),
	}
}

func (t tree) below(at string) []string {
	var found []string
	for one := range t {
		if path.Dir(one) == at {
			found = append(found, one)
		}
	}
	slices.SortFunc(found, func(a, b string) int { // "2" before "10"
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return found
}

func link(to string) resource { return resource{"@odata.id": to} }

func links(to ...string) []resource {
	all := []resource{}
	for _, one := range to {
		all = append(all, link(one))
	}
	return all
}

func enabled() resource { return resource{"State": "Enabled", "Health": "OK"} }

func allow(values ...string) []string { return values }

// tree renders the whole service in its current state.
func (s *Server) tree() tree {
	t := tree{}
	s.addRoot(t)
	s.sessions.addTo(t)
	s.addAccounts(t)
	s.addSystem(t)
	s.addProcessorsAndMemory(t)
	s.addStorage(t)
	s.addNetwork(t)
	s.addChassis(t)
	s.addManager(t)
	s.addUpdateService(t)
	s.addEventService(t)
	s.events.addTo(t)
	return t
}

func (s *Server) addRoot(t tree) {
	t.add(root, "#ServiceRoot.v1_15_0.ServiceRoot", "Root Service", resource{
		"Id": "RootService", "RedfishVersion": "1.17.0", "UUID": s.config.Inventory.UUID,
		"Vendor": s.config.Inventory.Manufacturer, "Product": "rackweft lab BMC",
		"Systems": link(root + "/Systems"), "Chassis": link(root + "/Chassis"), "Managers": link(root + "/Managers"),
		"SessionService": link(root + "/SessionService"), "AccountService": link(root + "/AccountService"),
		"EventService": link(root + "/EventService"), "UpdateService": link(root + "/UpdateService"),
		"Links": resource{"Sessions": link(sessionsPath)},
		"ProtocolFeaturesSupported": resource{
			"ExcerptQuery": false, "FilterQuery": false, "OnlyMemberQuery": false, "SelectQuery": false,
			"ExpandQuery": resource{"ExpandAll": false, "Levels": false, "Links": false, "NoLinks": false},
		},
	})
}

func (s *Server) addAccounts(t tree) {
	at := root + "/AccountService"
	t.add(at, "#AccountService.v1_13_0.AccountService", "Account Service", resource{
		"Status": enabled(), "ServiceEnabled": true, "AccountLockoutThreshold": 0,
		"MinPasswordLength": 1, "MaxPasswordLength": 128,
		"Accounts": link(at + "/Accounts"), "Roles": link(at + "/Roles"),
	})
	t.add(at+"/Accounts/1", "#ManagerAccount.v1_10_0.ManagerAccount", "User Account", resource{
		"UserName": s.config.Username, "Password": nil, "RoleId": "Administrator", "Enabled": true, "Locked": false,
		"AccountTypes": allow("Redfish"), "Links": resource{"Role": link(at + "/Roles/Administrator")},
	})
	t.collect(at+"/Accounts", "ManagerAccount", "Accounts Collection")
	t.add(at+"/Roles/Administrator", "#Role.v1_3_1.Role", "User Role", resource{
		"RoleId": "Administrator", "IsPredefined": true,
		"AssignedPrivileges": allow("Login", "ConfigureManager", "ConfigureUsers", "ConfigureSelf", "ConfigureComponents"),
	})
	t.collect(at+"/Roles", "Role", "Roles Collection")
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

func (s *Server) bootResource() resource {
	override := s.machine.Override()
	s.mu.Lock()
	uri := s.httpBootURI
	s.mu.Unlock()

	boot := resource{
		"BootSourceOverrideEnabled": "Disabled", "BootSourceOverrideTarget": None,
		"BootSourceOverrideMode":                            s.config.Inventory.Firmware,
		"BootSourceOverrideEnabled@Redfish.AllowableValues": allow("Disabled", "Once", "Continuous"),
		"BootSourceOverrideTarget@Redfish.AllowableValues":  s.bootTargets(),
		"BootSourceOverrideMode@Redfish.AllowableValues":    []Firmware{s.config.Inventory.Firmware},
	}
	if s.config.Inventory.Firmware == UEFI {
		boot["HttpBootUri"] = uri
	}
	if override.Target != None && override.Target != "" {
		boot["BootSourceOverrideTarget"], boot["BootSourceOverrideEnabled"] = override.Target, "Continuous"
		if override.Once {
			boot["BootSourceOverrideEnabled"] = "Once"
		}
	}
	return boot
}

func (s *Server) bootTargets() []Target {
	if s.config.Inventory.Firmware == UEFI {
		return []Target{None, Pxe, Hdd, UefiHTTP}
	}
	return []Target{None, Pxe, Hdd}
}

func (s *Server) addProcessorsAndMemory(t tree) {
	inv := s.config.Inventory
	t.add(systemPath+"/Processors/1", "#Processor.v1_18_0.Processor", "Processor", resource{
		"ProcessorType": "CPU", "ProcessorArchitecture": "x86", "InstructionSet": "x86-64", "Socket": "CPU 1",
		"Manufacturer": inv.Manufacturer, "Model": inv.CPUModel, "TotalCores": inv.CPUs, "TotalThreads": inv.CPUs, "Status": enabled(),
	})
	t.collect(systemPath+"/Processors", "Processor", "Processors Collection")
	t.add(systemPath+"/Memory/1", "#Memory.v1_17_0.Memory", "DIMM 1", resource{
		"MemoryType": "DRAM", "MemoryDeviceType": "DDR4", "CapacityMiB": inv.MemoryMiB, "VolatileSizeMiB": inv.MemoryMiB, "DeviceLocator": "DIMM 1",
		"Manufacturer": inv.Manufacturer, "SerialNumber": inv.Serial + "-M1", "PartNumber": "LAB-DIMM", "Status": enabled(),
	})
	t.collect(systemPath+"/Memory", "Memory", "Memory Collection")
}

func (s *Server) addStorage(t tree) {
	inv := s.config.Inventory
	drive := systemPath + "/Storage/1/Drives/1"
	t.add(drive, "#Drive.v1_17_0.Drive", "Drive 1", resource{
		"Manufacturer": inv.Manufacturer, "Model": "LAB-DISK", "SerialNumber": inv.DiskSerial, "CapacityBytes": inv.DiskBytes,
		"BlockSizeBytes": 512, "MediaType": "SSD", "Protocol": "PCIe", "Status": enabled(),
	})
	t.add(systemPath+"/Storage/1", "#Storage.v1_15_1.Storage", "Storage 1", resource{
		"Drives": links(drive), "Drives@odata.count": 1, "Status": enabled(),
	})
	t.collect(systemPath+"/Storage", "Storage", "Storage Collection")
	t.add(systemPath+"/SimpleStorage/1", "#SimpleStorage.v1_3_1.SimpleStorage", "Simple Storage 1", resource{
		"Devices": []resource{{"Name": "Drive 1", "Manufacturer": inv.Manufacturer, "Model": "LAB-DISK",
			"CapacityBytes": inv.DiskBytes, "Status": enabled()}},
		"Status": enabled(),
	})
	t.collect(systemPath+"/SimpleStorage", "SimpleStorage", "Simple Storage Collection")
}

// addNetwork shows each NIC twice, as BMCs do: as an Ethernet interface of the
// system, and as an adapter of the chassis with one port, where bmclib's
// inventory looks.
func (s *Server) addNetwork(t tree) {
	adapters := root + "/Chassis/1/NetworkAdapters"
	for i, nic := range s.config.Inventory.NICs {
		// A port's id is a prefix of its interface's id: bmclib matches the two
		// by it.
		id := fmt.Sprintf("NIC%d", i+1)
		t.add(systemPath+"/EthernetInterfaces/"+id+"-1", "#EthernetInterface.v1_9_0.EthernetInterface", nic.Name, resource{
			"MACAddress": nic.MAC, "PermanentMACAddress": nic.MAC, "InterfaceEnabled": true, "SpeedMbps": 1000,
			"FullDuplex": true, "AutoNeg": true, "MTUSize": 1500, "LinkStatus": "LinkUp", "Status": enabled(),
		})
		adapter := adapters + "/" + id
		t.add(systemPath+"/NetworkInterfaces/"+id, "#NetworkInterface.v1_2_1.NetworkInterface", nic.Name, resource{
			"Status": enabled(), "Links": resource{"NetworkAdapter": link(adapter)},
		})
		t.add(adapter+"/NetworkPorts/"+id+"-1", "#NetworkPort.v1_4_1.NetworkPort", nic.Name+" port 1", resource{
			"PhysicalPortNumber": "1", "LinkStatus": "Up", "CurrentLinkSpeedMbps": 1000, "ActiveLinkTechnology": "Ethernet",
			"AssociatedNetworkAddresses": []string{nic.MAC}, "Status": enabled(),
		})
		t.collect(adapter+"/NetworkPorts", "NetworkPort", "Network Ports")
		t.add(adapter, "#NetworkAdapter.v1_9_0.NetworkAdapter", nic.Name, resource{
			"Manufacturer": s.config.Inventory.Manufacturer, "Model": "LAB-NIC", "PartNumber": "LAB-NIC",
			"SerialNumber": strings.ReplaceAll(nic.MAC, ":", ""), "Status": enabled(),
			"NetworkPorts": link(adapter + "/NetworkPorts"),
		})
	}
	t.collect(systemPath+"/EthernetInterfaces", "EthernetInterface", "Ethernet Interface Collection")
	t.collect(systemPath+"/NetworkInterfaces", "NetworkInterface", "Network Interface Collection")
	t.collect(adapters, "NetworkAdapter", "Network Adapter Collection")
}

func (s *Server) addChassis(t tree) {
	inv := s.config.Inventory
	s.mu.Lock()
	indicator := s.indicator
	s.mu.Unlock()
	t.add(root+"/Chassis/1", "#Chassis.v1_23_0.Chassis", "Computer System Chassis", resource{
		"ChassisType": "RackMount", "Manufacturer": inv.Manufacturer, "Model": inv.Model, "SerialNumber": inv.Serial,
		"SKU": inv.SKU, "AssetTag": s.machine.AssetTag(), "PowerState": s.machine.Power(), "IndicatorLED": indicator, "Status": enabled(),
		"NetworkAdapters": link(root + "/Chassis/1/NetworkAdapters"),
		"Links":           resource{"ComputerSystems": links(systemPath), "ManagedBy": links(root + "/Managers/1")},
	})
	t.collect(root+"/Chassis", "Chassis", "Chassis Collection")
}

func (s *Server) addManager(t tree) {
	at := root + "/Managers/1"
	t.add(at, "#Manager.v1_18_0.Manager", "Manager", resource{
		"ManagerType": "BMC", "Model": "rackweft lab BMC", "FirmwareVersion": firmwareVersion, "UUID": s.config.Inventory.UUID,
		"PowerState": "On", "Status": enabled(), "DateTime": time.Now().UTC().Format(time.RFC3339), "DateTimeLocalOffset": "+00:00",
		"LastResetTime":      s.started.UTC().Format(time.RFC3339),
		"NetworkProtocol":    link(at + "/NetworkProtocol"),
		"EthernetInterfaces": link(at + "/EthernetInterfaces"),
		"Links": resource{"ManagerForServers": links(systemPath), "ManagerForChassis": links(root + "/Chassis/1"),
			"ManagerInChassis": link(root + "/Chassis/1")},
		"Actions": resource{"#Manager.Reset": resource{
			"target": managerResetPath, "ResetType@Redfish.AllowableValues": allow("GracefulRestart", "ForceRestart"),
		}},
	})
	t.collect(root+"/Managers", "Manager", "Manager Collection")
	t.add(at+"/NetworkProtocol", "#ManagerNetworkProtocol.v1_9_1.ManagerNetworkProtocol", "Manager Network Protocol", resource{
		"Status": enabled(), "HostName": "bmc-" + strings.ToLower(s.config.Inventory.Serial),
		"HTTP": resource{"ProtocolEnabled": false, "Port": 80}, "HTTPS": resource{"ProtocolEnabled": true, "Port": 443},
		"IPMI": resource{"ProtocolEnabled": false, "Port": 623}, "SSH": resource{"ProtocolEnabled": false, "Port": 22},
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
		"Version": s.config.Inventory.BIOSVersion, "Updateable": false, "Status": enabled(),
	})
	t.collect(at+"/FirmwareInventory", "SoftwareInventory", "Firmware Inventory Collection")
	t.add(at, "#UpdateService.v1_12_0.UpdateService", "Update Service", resource{
		"ServiceEnabled": false, "Status": resource{"State": "Disabled"}, "FirmwareInventory": link(at + "/FirmwareInventory"),
	})
}

func (s *Server) addEventService(t tree) {
	t.add(root+"/EventService", "#EventService.v1_10_0.EventService", "Event Service", resource{
		"Status": enabled(), "ServiceEnabled": true, "ServerSentEventUri": ssePath,
		"EventFormatTypes": allow("Event"), "RegistryPrefixes": allow("ResourceEvent"),
		"SSEFilterPropertiesSupported": resource{},
		"Subscriptions":                link(root + "/EventService/Subscriptions"),
	})
	t.collect(root+"/EventService/Subscriptions", "EventDestination", "Event Subscriptions")
}
