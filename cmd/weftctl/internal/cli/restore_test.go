package cli

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// restoredStatus is that of a Site that waits for a02, a03 and two hosts that the backup does not know.
func restoredStatus() api.RecoveryStatus {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	return api.RecoveryStatus{Epoch: 1772600767, Recovery: &api.Recovery{Restored: at, Backup: at.Add(-24 * time.Hour), Held: true,
		Hosts: []api.RecoveryHost{{Name: "a04", UID: "u4", Key: "k4", Address: "198.18.8.14", Issued: at.Add(-time.Hour)}, {Name: "a05"}}},
		Machines: []api.RecoveryMachine{
			{Name: "a01", Done: true, Reason: api.AccountedReport, Message: "its host has reported 2 Networks and 3 Guests"},
			{Name: "a02", Reason: api.AccountedWaiting, Message: "its host has not reported since the restore"},
			{Name: "a03", Reason: api.AccountedNewKey, Message: "its host, at 198.18.8.13, has a key from after the backup"},
		}}
}

func TestRestoreStatus(t *testing.T) {
	b := newBootd(t)
	b.run(t, "", "restore", "status").want(t, 0, "No restore is in progress.\n")

	b.recovery = restoredStatus()
	b.run(t, "", "restore", "status").want(t, 0, `Restored 2026-03-04T05:06:07Z from a backup of 2026-03-03T05:06:07Z, at epoch 1772600767.
Held: 1 of 3 Machines are accounted for.

MACHINE   ACCOUNTED   MESSAGE
a01       Reported    its host has reported 2 Networks and 3 Guests
a02       Waiting     its host has not reported since the restore
a03       NewKey      its host, at 198.18.8.13, has a key from after the backup
a04       Unknown     at 198.18.8.14, its certificate was issued on 2026-03-04T04:06:07Z, after the backup: apply its Machine if that is missing, then weftctl restore accept a04
a05       Unknown     other hosts name it as their peer, and it has not connected: weftctl restore write-off a05, if it is gone
`)

	b.recovery.Recovery.Held, b.recovery.Recovery.Hosts = false, nil
	b.recovery.Machines = b.recovery.Machines[:1]
	b.recovery.Recovery.Unknown = []api.RecoveryPart{
		{Kind: "Network", Name: "green", UID: "g", VNI: 10018},
		{Kind: "Guest", Name: "shop", UID: "s", Network: "green", Host: "a01", Addresses: []netip.Addr{netip.MustParseAddr("10.6.1.2"), netip.MustParseAddr("fd00::2")}},
	}
	b.recovery.Recovery.Conflicts = []string{"Guest web is on a01 and a02: the one on a01 counts"}
	b.run(t, "", "restore", "status").want(t, 0, `Restored 2026-03-04T05:06:07Z from a backup of 2026-03-03T05:06:07Z, at epoch 1772600767.
Every Machine is accounted for: bootd works normally.

MACHINE   ACCOUNTED   MESSAGE
a01       Reported    its host has reported 2 Networks and 3 Guests

ONLY HOSTS KNOW   HOST   RESERVED
network/green            VNI 10018
guest/shop        a01    10.6.1.2, fd00::2
Apply their manifests again: they are taken over as they run.

conflict: Guest web is on a01 and a02: the one on a01 counts
`)
	b.run(t, "", "restore", "status", "-o", "yaml").want(t, 2, "", "want table or json")
}

func TestRestoreVerbs(t *testing.T) {
	b := newBootd(t)
	b.recovery = restoredStatus()
	b.run(t, "", "restore", "accept", "a04").want(t, 0, "host/a04 accepted\n")
	b.run(t, "", "restore", "write-off").want(t, 2, "", "name the hosts, or give --all")
	b.run(t, "", "restore", "write-off", "a02", "--all").want(t, 2, "", "name the hosts, or give --all")
	// One that runs with another key is not silent: no --all writes it off.
	b.run(t, "", "restore", "write-off", "--all").want(t, 0, "host/a02 written off\nhost/a05 written off\n")
	b.refuse["POST /v1/recovery/write-off/a06"] = &api.Problem{Status: 409, Title: "Conflict", Detail: "nothing to do: no Machine and no host is called a06"}
	b.run(t, "", "restore", "write-off", "a06", "a02").want(t, 1, "host/a02 written off\n", "host a06: ", "no host is called a06")
	b.run(t, "", "restore", "finish").want(t, 0, "finished\n")
	b.run(t, "", "restore", "finish", "--forget").want(t, 0, "finished\n")

	b.mu.Lock()
	defer b.mu.Unlock()
	posts := slices.DeleteFunc(b.requests, func(r string) bool { return r[:4] != "POST" })
	want := []string{"POST /v1/recovery/accept/a04", "POST /v1/recovery/write-off/a02", "POST /v1/recovery/write-off/a05", "POST /v1/recovery/write-off/a06",
		"POST /v1/recovery/write-off/a02", "POST /v1/recovery/finish?forget=false", "POST /v1/recovery/finish?forget=true"}
	if !slices.Equal(posts, want) {
		t.Errorf("bootd was asked\n%q\nwant\n%q", posts, want)
	}
}
