package cli

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

func TestBGPSessions(t *testing.T) {
	b := newBootd(t)
	up := func(peer, role string) api.BGPSession {
		return api.BGPSession{Peer: peer, Role: role, State: api.BGPEstablished, Since: time.Now().Add(-90 * time.Minute), Received: 3, Accepted: 2, Advertised: 7}
	}
	b.bgp = map[string]any{"/v1/zones/yellow/bgp/sessions": api.ZoneSessions{Zone: "yellow", Sessions: []api.ZoneSession{
		{Host: "r1u01", Session: up("r1u07", "client")},
		{Host: "r1u01", Session: up("r1u08", "client"), Other: &api.BGPSession{State: "active", LastError: "no route\x1b[31m"}},
		{Host: "r1u01", Session: api.BGPSession{Peer: "198.18.8.1", Role: "uplink", State: "idle", Flaps: 4, LastError: "hold timer expired"}},
		{Host: "r2u01", Session: api.BGPSession{Peer: "r1u07", Role: "client"}, Message: "r2u01 has reported no session to this bootd"},
	}}, "/v1/zones/green/bgp/sessions": api.ZoneSessions{Zone: "green", Sessions: []api.ZoneSession{{Host: "r1u01", Session: up("r1u07", "client")}}, Inside: []api.NetworkSession{
		{Network: "blue", Host: "r1u07", Session: up("worker-1", "guest")},
		{Network: "blue", Host: "r1u07", Session: api.BGPSession{Peer: "worker-2", Role: "guest", State: "limited", Flaps: 1, LastError: "too many\x1b[31m"}},
		{Network: "blue", Host: "r1u07", Session: up("r1u08", "host")},
	}}, "/v1/zones/red/bgp/sessions": api.ZoneSessions{Zone: "red"}}
	b.run(t, "", "bgp", "sessions", "yellow").want(t, 0, `REFLECTOR   PEER         ROLE     STATE         SINCE   RECEIVED   ACCEPTED   ADVERTISED   FLAPS   REMARK
r1u01       r1u07        client   established   1h30m   3          2          7            0       
r1u01       r1u08        client   established   1h30m   3          2          7            0       r1u08 says active: no route�[31m
r1u01       198.18.8.1   uplink   idle          -       0          0          0            4       hold timer expired
r2u01       r1u07        client   -             -       -          -          -            -       r2u01 has reported no session to this bootd
`)
	if r := b.run(t, "", "bgp", "sessions", "yellow", "--down"); r.code != 0 || strings.Count(r.out, "\n") != 3 {
		t.Errorf("%+v", r)
	}
	b.run(t, "", "bgp", "sessions", "green").want(t, 0, `REFLECTOR   PEER    ROLE     STATE         SINCE   RECEIVED   ACCEPTED   ADVERTISED   FLAPS   REMARK
r1u01       r1u07   client   established   1h30m   3          2          7            0       

NETWORK   HOST    PEER       ROLE    STATE         SINCE   RECEIVED   ACCEPTED   ADVERTISED   FLAPS   REMARK
blue      r1u07   worker-1   guest   established   1h30m   3          2          7            0       
blue      r1u07   worker-2   guest   limited       -       0          0          0            1       too many�[31m
blue      r1u07   r1u08      host    established   1h30m   3          2          7            0       
`)
	if r := b.run(t, "", "bgp", "sessions", "green", "--down"); r.code != 0 || strings.Count(r.out, "\n") != 2 {
		t.Errorf("%+v", r)
	}
	b.run(t, "", "bgp", "sessions", "red").want(t, 0, "", "zone/red has no session")
	b.run(t, "", "bgp", "sessions", "blue").want(t, 1, "", "sessions of zone/blue: Not Found")
	b.run(t, "", "bgp", "sessions").want(t, 2, "", "want ZONE")
	b.run(t, "", "bgp", "sessions", "red", "-o", "xml").want(t, 2, "", "table or json")
}

func TestBGPRoutes(t *testing.T) {
	b := newBootd(t)
	b.bgp = map[string]any{"/v1/zones/yellow/bgp/routes": api.ZoneRoutes{Zone: "yellow", Omitted: 5, Routes: []api.ZoneRoute{
		{Prefix: netip.MustParsePrefix("0.0.0.0/0"), NextHop: netip.MustParseAddr("198.18.8.1"), Origin: "198.18.8.1", At: []string{"r1u01", "r2u01"}},
		{Prefix: netip.MustParsePrefix("10.5.3.0/24"), NextHop: netip.MustParseAddr("198.18.8.7"), Origin: "r1u07", Network: "blue", Wanted: true},
		{Prefix: netip.MustParsePrefix("10.5.9.7/32"), NextHop: netip.MustParseAddr("198.18.8.7"), Origin: "r1u07", Loopback: true, Wanted: true, At: []string{"r1u01"}},
		{Prefix: netip.MustParsePrefix("10.5.9.200/32"), NextHop: netip.MustParseAddr("198.18.8.7"), Origin: "r1u07", Service: "dns", Wanted: true, State: api.ServiceWithdrawn, Reason: "connection refused"},
	}}}
	b.run(t, "", "bgp", "routes", "yellow").want(t, 0, `PREFIX          NEXT HOP     ORIGIN       FOR            AT            REMARK
0.0.0.0/0       198.18.8.1   198.18.8.1   -              r1u01,r2u01   
10.5.3.0/24     198.18.8.7   r1u07        network/blue   -             no reflector reports it
10.5.9.7/32     198.18.8.7   r1u07        loopback       r1u01         
10.5.9.200/32   198.18.8.7   r1u07        service dns    -             withdrawn: connection refused
`, "5 routes more")
}

func TestBGPPolicyTest(t *testing.T) {
	b := newBootd(t)
	b.machine("r1u07", nil)
	prefix := netip.MustParsePrefix("10.5.3.0/24")
	b.bgp = map[string]any{
		"/v1/zones/yellow/bgp/test?from=r1u07&prefix=10.5.3.0%2F24": api.BGPTest{Zone: "yellow", From: "r1u07", Prefix: prefix, Accepted: true, Reason: "it may",
			Reflectors: []api.BGPTestAnswer{{Reflector: "r1u01", Accepted: true, Reason: "it may", Told: []api.BGPTestExport{{To: "its 3 other clients", Told: true, Reason: "of the Zone"}, {To: "198.18.8.1", Reason: "not listed"}}}}},
		"/v1/zones/yellow/bgp/test?from=198.18.8.1&prefix=10.5.3.0%2F24": api.BGPTest{Zone: "yellow", From: "198.18.8.1", Prefix: prefix, Reason: "not imported"},
	}
	b.run(t, "", "bgp", "policy-test", "10.5.3.0/24", "--from", "r1u07").want(t, 0, `10.5.3.0/24 from r1u07 in Zone yellow  accepted
  it may

r1u01  accepts
  it may
  advertises to its 3 other clients: of the Zone
  does not advertise to 198.18.8.1: not listed
`)
	b.run(t, "", "bgp", "policy-test", "10.5.3.0/24", "--from", "198.18.8.1", "--zone", "yellow").want(t, 1, "10.5.3.0/24 from 198.18.8.1 in Zone yellow  denied\n  not imported\n")
	b.run(t, "", "bgp", "policy-test", "10.5.3.0/24", "--from", "198.18.8.1").want(t, 2, "", "give the Zone with --zone")
	b.run(t, "", "bgp", "policy-test", "10.5.3.0", "--from", "r1u07").want(t, 2, "", "invalid prefix")
	b.run(t, "", "bgp", "policy-test", "10.5.3.0/24").want(t, 2, "", "--from HOST")
}

func TestBGPDrain(t *testing.T) {
	b := newBootd(t)
	b.machine("r1u07", nil)
	annotation := func() string {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.objects["machines/r1u07"].Meta().Annotations[drainAnnotation]
	}
	if r := b.run(t, "", "bgp", "drain", "r1u07"); r.code != 0 || !strings.HasPrefix(r.out, "machine/r1u07 draining") || annotation() != "true" {
		t.Errorf("%+v, %q", r, annotation())
	}
	b.run(t, "", "bgp", "drain", "r1u07").want(t, 0, "machine/r1u07 unchanged\n")
	b.run(t, "", "bgp", "undrain", "r1u07").want(t, 0, "machine/r1u07 no longer drained\n")
	if annotation() != "" {
		t.Error(annotation())
	}
	b.run(t, "", "bgp", "drain", "r9u09").want(t, 1, "", "machine/r9u09: Not Found")
}
