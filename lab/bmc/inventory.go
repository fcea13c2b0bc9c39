package bmc

import (
	"fmt"
	"strings"
)

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
