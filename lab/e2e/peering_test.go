package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/lab/rig"
)

// peering has Guests' hosts speak BGP inside of the Guests' Network, by units of their own in its namespace, over its
// VXLAN. The agent's end touches none, a speaker's own end is made good, and they go when nobody is to peer any more.
func peering(t *testing.T, r *rig.Rig, from, to *host) {
	const network = `apiVersion: rackweft/v1alpha1
kind: Network
metadata: {name: customer-a}
spec:
  zone: yellow
  cidrs: [10.5.0.0/16]
  egress: masquerade
`
	r.Apply(r.File("peering.yaml", network+"  peering: {asn: 64512, prefixes: [10.244.0.0/16]}\n"))
	n, err := api.Get[api.Network](t.Context(), r.Client, "customer-a")
	if err != nil {
		t.Fatal(err)
	}
	unit := "nodeagent-speaker-" + n.Metadata.UID + ".service"
	eventually(t, "the hosts' sessions inside", func() error { return insideEstablished(t, r, time.Time{}) })
	for _, h := range []*host{from, to} {
		namespaces := h.run("readlink /proc/1/ns/net /proc/" + mainPID(h, unit) + "/ns/net")
		if own, inside, _ := strings.Cut(namespaces, "\n"); own == inside || inside == "" {
			t.Errorf("%s: %s is in the host's namespace: %s", h.name, unit, namespaces)
		}
	}
	speaker, agent := mainPID(from, unit), mainPID(from, "nodeagent.service")
	from.run("kill -9 " + agent)
	from.wait("another nodeagent", func() bool {
		now := mainPID(from, "nodeagent.service")
		return now != agent && now != "0"
	})
	eventually(t, "the hosts' sessions inside, by another nodeagent", func() error { return insideEstablished(t, r, time.Time{}) })
	if now := mainPID(from, unit); now != speaker {
		t.Errorf("the speaker was %s and is %s", speaker, now)
	}
	from.run("kill -9 " + speaker)
	killed := time.Now()
	from.wait("another speaker", func() bool {
		now := mainPID(from, unit)
		return now != speaker && now != "0"
	})
	eventually(t, "the hosts' sessions inside, by another speaker", func() error { return insideEstablished(t, r, killed) })

	r.Apply(r.File("peering.yaml", network))
	for _, h := range []*host{from, to} {
		h.wait("an end of "+unit, func() bool { return h.run("systemctl show -P ActiveState "+unit) == "inactive" })
	}
}

// insideEstablished wants the session between the two hosts inside of the Network, since after then.
func insideEstablished(t *testing.T, r *rig.Rig, then time.Time) error {
	v, err := r.Client.ZoneSessions(t.Context(), "yellow")
	if err != nil {
		return err
	}
	for _, s := range v.Inside {
		if s.Network == "customer-a" && s.Session.Role == api.BGPHost && s.Session.State == api.BGPEstablished && s.Session.Since.After(then) {
			return nil
		}
	}
	return fmt.Errorf("inside there are %+v", v.Inside)
}
