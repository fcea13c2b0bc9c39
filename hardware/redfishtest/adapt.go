package redfishtest

import (
	"path"
	"slices"
	"strings"
)

// adapt changes the tree so that it shows the traits which are a matter of what is there.
func adapt(tree Tree, rules rules) {
	a := adapter{rules, tree}
	for _, at := range tree.systems() {
		a.system(at, tree[at])
	}
	if rules.has(NoClock) {
		for _, at := range tree.managers() {
			delete(tree[at], "DateTime")
			delete(tree[at], "DateTimeLocalOffset")
		}
	}
	if rules.has(NoSessions) {
		delete(tree[rootPath], "SessionService")
		tree[rootPath]["Links"] = Resource{}
	}
	a.media()
}

// userAccount is the path of our user's account, which is made where there is none.
func userAccount(tree Tree) string {
	collection := rootPath + "/AccountService/Accounts"
	for _, at := range tree.members(collection) {
		if str(tree[at], "UserName") == Username {
			return at
		}
	}
	tree[accountPath] = Resource{"@odata.id": accountPath, "@odata.type": "#ManagerAccount.v1_8_0.ManagerAccount", "Id": "1",
		"UserName": Username, "Password": nil, "PasswordChangeRequired": false, "RoleId": "Administrator", "Enabled": true, "Locked": false}
	if tree[collection] == nil {
		tree[collection] = Resource{"@odata.id": collection, "Name": "Accounts"}
	}
	others := slices.DeleteFunc(tree.members(collection), func(at string) bool { return at == accountPath })
	list := []any{reference(accountPath)}
	for _, at := range others {
		list = append(list, reference(at))
	}
	tree[collection]["Members"] = list
	service := rootPath + "/AccountService"
	if tree[service] == nil {
		tree[service] = Resource{"@odata.id": service, "Id": "AccountService", "Accounts": reference(collection)}
	}
	tree[rootPath]["AccountService"] = reference(service)
	return accountPath
}

// adapter changes a tree.
type adapter struct {
	rules
	tree Tree
}

func (a adapter) system(at string, sys Resource) {
	if a.has(NoBootOverride) {
		delete(sys, "Boot")
	}
	boot := object(sys, "Boot")
	if boot != nil && a.has(OnlyUefiPxe) {
		boot["BootSourceOverrideTarget@Redfish.AllowableValues"] = []any{"None", "UefiPxe", "UefiHdd", "UefiUsb", "BiosSetup"}
	}
	if boot != nil && a.has(ModeUnknown) {
		delete(boot, "BootSourceOverrideMode")
		delete(boot, "BootSourceOverrideMode@Redfish.AllowableValues")
	}
	a.pending(at, sys)
	a.nics(sys)
	if a.has(NoReset) {
		delete(sys, "Actions")
	}
	if a.has(NoResetTime) {
		delete(sys, "LastResetTime")
		delete(object(sys, "BootProgress"), "LastStateTime")
		delete(object(sys, "Oem", "Hpe"), "PostDiscoveryCompleteTimeStamp")
	}
	if a.has(Clock1970) {
		sys["LastResetTime"] = "1970-01-01T00:02:17+00:00"
	}
	if a.has(StandsInDiscovery) && object(sys, "Oem", "Hpe") != nil {
		object(sys, "Oem", "Hpe")["PostState"] = "InPostDiscoveryComplete"
	}
	if a.has(NoTag) {
		delete(sys, "AssetTag")
	}
	if a.has(OldLight) && sys["LocationIndicatorActive"] != nil {
		delete(sys, "LocationIndicatorActive")
		sys["IndicatorLED"] = "Off"
	}
	if a.has(NoLight) {
		delete(sys, "LocationIndicatorActive")
		delete(sys, "IndicatorLED")
	}
}

// pending makes the resource that has what is pending until the next reset.
func (a adapter) pending(at string, sys Resource) {
	boot := object(sys, "Boot")
	switch {
	case a.has(BootInFutureState):
		pending := at + "/SD"
		if !a.has(FutureStateUnnamed) {
			sys["@Redfish.Settings"] = Resource{"@odata.type": "#Settings.v1_3_0.Settings", "SettingsObject": reference(pending)}
		}
		a.tree[pending] = Resource{"@odata.id": pending, "@odata.type": "#ComputerSystem.v1_18_0.ComputerSystem", "Id": "SD",
			"Name": "System", "Boot": clone(boot)}
	case a.has(BootInSettings):
		pending := canonical(str(object(sys, "@Redfish.Settings", "SettingsObject"), "@odata.id"))
		if a.tree[pending] != nil && object(a.tree[pending], "Boot")["BootSourceOverrideTarget"] != nil {
			return // the tree has it so
		}
		pending = at + "/Settings"
		sys["@Redfish.Settings"] = Resource{"@odata.type": "#Settings.v1_3_0.Settings", "SettingsObject": reference(pending)}
		a.tree[pending] = Resource{"@odata.id": pending, "@odata.type": "#ComputerSystem.v1_20_0.ComputerSystem", "Id": "Settings",
			"Name": "System", "AssetTag": "", "Boot": clone(boot)}
		for key := range boot {
			if strings.HasPrefix(key, "BootSourceOverride") && key != "BootSourceOverrideMode" {
				delete(boot, key)
			}
		}
	}
}

// media takes away, moves or strips the virtual media.
func (a adapter) media() {
	for _, manager := range a.tree.managers() {
		collection := canonical(str(object(a.tree[manager], "VirtualMedia"), "@odata.id"))
		members := a.tree.members(collection)
		if a.has(NoMedia) {
			for _, at := range members {
				delete(a.tree, at)
			}
			if a.tree[collection] != nil {
				a.tree[collection]["Members"], a.tree[collection]["Members@odata.count"] = []any{}, 0
			}
			continue
		}
		if a.has(MediaByPatch) {
			for _, at := range members {
				delete(a.tree[at], "Actions")
			}
		}
		if a.has(MediaInSystem) && len(members) > 0 {
			a.moveMedia(manager, collection, members)
		}
	}
}

func (a adapter) moveMedia(manager, collection string, members []string) {
	system := a.tree.systems()[0]
	to := system + "/" + path.Base(collection)
	list := []any{}
	for _, at := range members {
		media, moved := a.tree[at], to+"/"+path.Base(at)
		for _, action := range object(media, "Actions") {
			if found, ok := action.(map[string]any); ok {
				found["target"] = strings.Replace(str(found, "target"), at, moved, 1)
			}
		}
		media["@odata.id"] = moved
		a.tree[moved] = media
		delete(a.tree, at)
		list = append(list, reference(moved))
	}
	delete(a.tree, collection)
	delete(a.tree[manager], "VirtualMedia")
	a.tree[system]["VirtualMedia"] = reference(to)
	a.tree[to] = Resource{"@odata.id": to, "@odata.type": "#VirtualMediaCollection.VirtualMediaCollection", "Name": "Virtual Media",
		"Members": list, "Members@odata.count": len(list)}
}
