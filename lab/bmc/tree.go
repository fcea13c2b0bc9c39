package bmc

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

const (
	root           = "/redfish/v1"
	clearLogAction = "/Actions/LogService.ClearLog"
	ssePath        = root + "/EventService/SSE"
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
	for _, one := range s.systems {
		one.addTo(t)
	}
	t.collect(root+"/Systems", "ComputerSystem", "Computer System Collection")
	t.collect(root+"/Chassis", "Chassis", "Chassis Collection")
	s.addManager(t)
	s.addUpdateService(t)
	s.addEventService(t)
	s.tasks.addTo(t)
	return t
}

func (s *Server) addRoot(t tree) {
	service := resource{
		"Id": "RootService", "RedfishVersion": "1.17.0", "UUID": s.systems[0].Inventory.UUID,
		"Vendor": s.systems[0].Inventory.Manufacturer, "Product": "rackweft lab BMC",
		"Systems": link(root + "/Systems"), "Chassis": link(root + "/Chassis"), "Managers": link(root + "/Managers"),
		"SessionService": link(root + "/SessionService"), "AccountService": link(root + "/AccountService"),
		"EventService": link(root + "/EventService"), "UpdateService": link(root + "/UpdateService"),
		"Tasks": link(root + "/TaskService"),
		"Links": resource{"Sessions": link(sessionsPath)},
		"ProtocolFeaturesSupported": resource{
			"ExcerptQuery": false, "FilterQuery": false, "OnlyMemberQuery": false, "SelectQuery": false,
			"ExpandQuery": resource{"ExpandAll": false, "Levels": false, "Links": false, "NoLinks": false},
		},
	}
	if s.config.Events == NoEvents {
		delete(service, "EventService")
	}
	if s.config.Login == BasicOnly {
		delete(service, "SessionService")
		delete(service, "Links")
	}
	t.add(root, "#ServiceRoot.v1_15_0.ServiceRoot", "Root Service", service)
}

func (s *Server) addAccounts(t tree) {
	at := root + "/AccountService"
	basic := "Enabled"
	if s.config.Login == SessionsOnly {
		basic = "Disabled"
	}
	t.add(at, "#AccountService.v1_15_0.AccountService", "Account Service", resource{
		"Status": enabled(), "ServiceEnabled": true, "AccountLockoutThreshold": 0, "HTTPBasicAuth": basic,
		"MinPasswordLength": 1, "MaxPasswordLength": 128,
		"Accounts": link(at + "/Accounts"), "Roles": link(at + "/Roles"),
	})
	t.add(accountPath, "#ManagerAccount.v1_10_0.ManagerAccount", "User Account", resource{
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
