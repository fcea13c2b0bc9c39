package bmc

import (
	"fmt"
	"strings"
)

func (s *system) addProcessorsAndMemory(t tree) {
	inv := s.Inventory
	t.add(s.path+"/Processors/1", "#Processor.v1_18_0.Processor", "Processor", resource{
		"ProcessorType": "CPU", "ProcessorArchitecture": "x86", "InstructionSet": "x86-64", "Socket": "CPU 1",
		"Manufacturer": inv.Manufacturer, "Model": inv.CPUModel, "TotalCores": inv.CPUs, "TotalThreads": inv.CPUs, "Status": enabled(),
	})
	t.collect(s.path+"/Processors", "Processor", "Processors Collection")
	t.add(s.path+"/Memory/1", "#Memory.v1_17_0.Memory", "DIMM 1", resource{
		"MemoryType": "DRAM", "MemoryDeviceType": "DDR4", "CapacityMiB": inv.MemoryMiB, "VolatileSizeMiB": inv.MemoryMiB, "DeviceLocator": "DIMM 1",
		"Manufacturer": inv.Manufacturer, "SerialNumber": inv.Serial + "-M1", "PartNumber": "LAB-DIMM", "Status": enabled(),
	})
	t.collect(s.path+"/Memory", "Memory", "Memory Collection")
}

func (s *system) addStorage(t tree) {
	inv := s.Inventory
	t.collect(s.path+"/Storage", "Storage", "Storage Collection")
	t.collect(s.path+"/SimpleStorage", "SimpleStorage", "Simple Storage Collection")
	if inv.DiskBytes == 0 {
		return
	}
	drive := s.path + "/Storage/1/Drives/1"
	t.add(drive, "#Drive.v1_17_0.Drive", "Drive 1", resource{
		"Manufacturer": inv.Manufacturer, "Model": "LAB-DISK", "SerialNumber": inv.DiskSerial, "CapacityBytes": inv.DiskBytes,
		"BlockSizeBytes": 512, "MediaType": "SSD", "Protocol": "PCIe", "Status": enabled(),
	})
	t.add(s.path+"/Storage/1", "#Storage.v1_15_1.Storage", "Storage 1", resource{
		"Drives": links(drive), "Drives@odata.count": 1, "Status": enabled(),
	})
	t.collect(s.path+"/Storage", "Storage", "Storage Collection")
	t.add(s.path+"/SimpleStorage/1", "#SimpleStorage.v1_3_1.SimpleStorage", "Simple Storage 1", resource{
		"Devices": []resource{{"Name": "Drive 1", "Manufacturer": inv.Manufacturer, "Model": "LAB-DISK",
			"CapacityBytes": inv.DiskBytes, "Status": enabled()}},
		"Status": enabled(),
	})
	t.collect(s.path+"/SimpleStorage", "SimpleStorage", "Simple Storage Collection")
}

// addNetwork shows each NIC twice, as BMCs do: as an Ethernet interface of the
// system, and as an adapter of the chassis with one port, where bmclib's
// inventory looks.
func (s *system) addNetwork(t tree) {
	adapters := s.chassis + "/NetworkAdapters"
	for i, nic := range s.Inventory.NICs {
		// A port's id is a prefix of its interface's id: bmclib matches the two
		// by it.
		id := fmt.Sprintf("NIC%d", i+1)
		t.add(s.path+"/EthernetInterfaces/"+id+"-1", "#EthernetInterface.v1_9_0.EthernetInterface", nic.Name, resource{
			"MACAddress": nic.MAC, "PermanentMACAddress": nic.MAC, "InterfaceEnabled": true, "SpeedMbps": 1000,
			"FullDuplex": true, "AutoNeg": true, "MTUSize": 1500, "LinkStatus": "LinkUp", "Status": enabled(),
		})
		adapter := adapters + "/" + id
		t.add(s.path+"/NetworkInterfaces/"+id, "#NetworkInterface.v1_2_1.NetworkInterface", nic.Name, resource{
			"Status": enabled(), "Links": resource{"NetworkAdapter": link(adapter)},
		})
		t.add(adapter+"/NetworkPorts/"+id+"-1", "#NetworkPort.v1_4_1.NetworkPort", nic.Name+" port 1", resource{
			"PhysicalPortNumber": "1", "LinkStatus": "Up", "CurrentLinkSpeedMbps": 1000, "ActiveLinkTechnology": "Ethernet",
			"AssociatedNetworkAddresses": []string{nic.MAC}, "Status": enabled(),
		})
		t.collect(adapter+"/NetworkPorts", "NetworkPort", "Network Ports")
		t.add(adapter, "#NetworkAdapter.v1_9_0.NetworkAdapter", nic.Name, resource{
			"Manufacturer": s.Inventory.Manufacturer, "Model": "LAB-NIC", "PartNumber": "LAB-NIC",
			"SerialNumber": strings.ReplaceAll(nic.MAC, ":", ""), "Status": enabled(),
			"NetworkPorts": link(adapter + "/NetworkPorts"),
		})
	}
	t.collect(s.path+"/EthernetInterfaces", "EthernetInterface", "Ethernet Interface Collection")
	t.collect(s.path+"/NetworkInterfaces", "NetworkInterface", "Network Interface Collection")
	t.collect(adapters, "NetworkAdapter", "Network Adapter Collection")
}

func (s *system) addChassis(t tree) {
	inv := s.Inventory
	s.mu.Lock()
	indicator := s.indicator
	s.mu.Unlock()
	chassis := resource{
		"ChassisType": "RackMount", "Manufacturer": inv.Manufacturer, "Model": inv.Model, "SerialNumber": inv.Serial,
		"SKU": inv.SKU, "PowerState": s.power(), "IndicatorLED": indicator, "Status": enabled(),
		"NetworkAdapters": link(s.chassis + "/NetworkAdapters"),
		"Links":           resource{"ComputerSystems": links(s.path), "ManagedBy": links(root + "/Managers/1")},
	}
	if s.Machine != nil {
		chassis["AssetTag"] = s.Machine.AssetTag()
	}
	t.add(s.chassis, "#Chassis.v1_23_0.Chassis", "Computer System Chassis", chassis)
}
