package redfish

import (
	"encoding/json"
)

// serviceRoot is DSP0266's entry point.
type serviceRoot struct {
	Vendor   text `json:"Vendor"`
	Product  text `json:"Product"`
	Systems  link `json:"Systems"`
	Managers link `json:"Managers"`
	Links    struct {
		Sessions link `json:"Sessions"`
	} `json:"Links"`
	SessionService link `json:"SessionService"`
	UpdateService  link `json:"UpdateService"`
	EventService   link `json:"EventService"`
	Features       struct {
		Expand struct {
			NoLinks bool `json:"NoLinks"`
			Levels  bool `json:"Levels"`
		} `json:"ExpandQuery"`
	} `json:"ProtocolFeaturesSupported"`
	Oem map[string]json.RawMessage `json:"Oem"`
}

// system is what we read of a ComputerSystem.
type system struct {
	ID           text                       `json:"Id"`
	Path         text                       `json:"@odata.id"`
	Manufacturer text                       `json:"Manufacturer"`
	Model        text                       `json:"Model"`
	SerialNumber text                       `json:"SerialNumber"`
	UUID         text                       `json:"UUID"`
	SKU          text                       `json:"SKU"`
	BIOSVersion  text                       `json:"BiosVersion"`
	PowerState   text                       `json:"PowerState"`
	Boot         bootSettings               `json:"Boot"`
	Settings     settingsLink               `json:"@Redfish.Settings"`
	Actions      systemActions              `json:"Actions"`
	Links        systemLinks                `json:"Links"`
	Oem          map[string]json.RawMessage `json:"Oem"`

	ProcessorSummary struct {
		Count     number `json:"Count"`
		CoreCount number `json:"CoreCount"`
		Model     text   `json:"Model"`
	} `json:"ProcessorSummary"`
	MemorySummary struct {
		GiB number `json:"TotalSystemMemoryGiB"`
	} `json:"MemorySummary"`
	Processors         link  `json:"Processors"`
	Memory             link  `json:"Memory"`
	EthernetInterfaces link  `json:"EthernetInterfaces"`
	NetworkInterfaces  link  `json:"NetworkInterfaces"`
	Storage            link  `json:"Storage"`
	SimpleStorage      link  `json:"SimpleStorage"`
	PCIeDevices        links `json:"PCIeDevices"`
	state

	VirtualMedia  link `json:"VirtualMedia"`
	Bios          link `json:"Bios"`
	LogServices   link `json:"LogServices"`
	LastResetTime text `json:"LastResetTime"`
	BootProgress  struct {
		LastState     text `json:"LastState"`
		LastStateTime text `json:"LastStateTime"`
	} `json:"BootProgress"`

	LocationIndicatorActive *bool          `json:"LocationIndicatorActive"`
	IndicatorLED            text           `json:"IndicatorLED"`
	SerialConsole           serialConsoles `json:"SerialConsole"`
}

// hpe is the part of HPE's own that tells of POST.
type hpe struct {
	PostState  text `json:"PostState"`
	Discovered text `json:"PostDiscoveryCompleteTimeStamp"`
}

func (s system) hpe() (h hpe) {
	_ = decode(s.Oem["Hpe"], &h) // absent elsewhere
	return h
}

type settingsLink struct {
	Object link `json:"SettingsObject"`
}

type systemActions struct {
	Reset struct {
		Target    text   `json:"target"`
		Allowable []text `json:"ResetType@Redfish.AllowableValues"`
		Info      text   `json:"@Redfish.ActionInfo"`
	} `json:"#ComputerSystem.Reset"`
}

type managerActions struct {
	Reset struct {
		Target    text   `json:"target"`
		Allowable []text `json:"ResetType@Redfish.AllowableValues"`
		Info      text   `json:"@Redfish.ActionInfo"`
	} `json:"#Manager.Reset"`
}

type systemLinks struct {
	ManagedBy links `json:"ManagedBy"`
	Chassis   links `json:"Chassis"`
}

// manager is what we read of a Manager.
type manager struct {
	Path          text           `json:"@odata.id"`
	Actions       managerActions `json:"Actions"`
	LastReset     text           `json:"LastResetTime"`
	Model         text           `json:"Model"`
	Firmware      text           `json:"FirmwareVersion"`
	DateTime      text           `json:"DateTime"`
	Offset        text           `json:"DateTimeLocalOffset"`
	SerialConsole serialConsoles `json:"SerialConsole"`
	CommandShell  serialConsoles `json:"CommandShell"`

	VirtualMedia   link `json:"VirtualMedia"`
	HostInterfaces link `json:"HostInterfaces"`
	LogServices    link `json:"LogServices"`
	Links          struct {
		Servers links `json:"ManagerForServers"`
	} `json:"Links"`
}
