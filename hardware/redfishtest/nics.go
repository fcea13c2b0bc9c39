package redfishtest

import (
	"fmt"
	"path"
)

// HostInterfaceMAC is the address of the port that leads to the BMC and nowhere else, where a tree shows one.
const HostInterfaceMAC = "02:00:5E:00:FF:01"

// nics lists the ports of a system elsewhere, and entries that are not ports.
func (a adapter) nics(sys Resource) {
	collection := canonical(str(object(sys, "EthernetInterfaces"), "@odata.id"))
	ports := a.tree.members(collection)
	if len(ports) == 0 {
		return
	}
	if a.has(NICsInAdapters) {
		a.moveNICs(sys, collection, ports)
		return
	}
	if a.has(VLANInterface) {
		a.addNIC(collection, "vlan100", Resource{"MACAddress": a.tree[ports[0]]["MACAddress"], "VLAN": Resource{"VLANEnable": true, "VLANId": 100}})
	}
	if a.has(HostInterface) {
		a.addNIC(collection, "ToManager", Resource{"MACAddress": HostInterfaceMAC, "Description": "Host interface to the manager"})
	}
}

func (a adapter) addNIC(collection, id string, nic Resource) {
	at := collection + "/" + id
	nic["@odata.id"], nic["@odata.type"], nic["Id"], nic["Name"] = at, "#EthernetInterface.v1_6_0.EthernetInterface", id, "EthernetInterface"
	a.tree[at] = nic
	list, _ := a.tree[collection]["Members"].([]any)
	a.setMembers(collection, append(list, reference(at)))
}

// moveNICs has one adapter of the system's chassis tell the ports, as its functions.
func (a adapter) moveNICs(sys Resource, collection string, ports []string) {
	links, _ := object(sys, "Links")["Chassis"].([]any)
	if len(links) == 0 {
		return
	}
	first, _ := links[0].(map[string]any)
	chassis := canonical(str(first, "@odata.id"))
	if a.tree[chassis] == nil {
		return
	}
	adapters := chassis + "/NetworkAdapters"
	adapter := adapters + "/Slot1"
	functions := adapter + "/NetworkDeviceFunctions"
	a.tree[chassis]["NetworkAdapters"] = reference(adapters)
	a.tree[adapters] = Resource{"@odata.id": adapters, "@odata.type": "#NetworkAdapterCollection.NetworkAdapterCollection", "Name": "Network Adapters"}
	a.setMembers(adapters, []any{reference(adapter)})
	a.tree[adapter] = Resource{"@odata.id": adapter, "@odata.type": "#NetworkAdapter.v1_8_0.NetworkAdapter", "Id": "Slot1", "Name": "Network Adapter",
		"NetworkDeviceFunctions": reference(functions)}
	a.tree[functions] = Resource{"@odata.id": functions, "@odata.type": "#NetworkDeviceFunctionCollection.NetworkDeviceFunctionCollection", "Name": "Functions"}
	list := []any{}
	for i, port := range ports {
		at := fmt.Sprintf("%s/%d", functions, i)
		a.tree[at] = Resource{"@odata.id": at, "@odata.type": "#NetworkDeviceFunction.v1_8_0.NetworkDeviceFunction", "Id": path.Base(at), "Name": "Function",
			"NetDevFuncType": "Ethernet", "Ethernet": Resource{"MACAddress": a.tree[port]["MACAddress"]}}
		list = append(list, reference(at))
		delete(a.tree, port)
	}
	a.setMembers(functions, list)
	delete(a.tree, collection)
	delete(sys, "EthernetInterfaces")
}

func (a adapter) setMembers(collection string, list []any) {
	a.tree[collection]["Members"], a.tree[collection]["Members@odata.count"] = list, len(list)
}
