package bgp

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/osrg/gobgp/v3/pkg/packet/bmp"

	"github.com/rackweft/rackweft/api"
)

// station is a monitoring station (RFC 7854): it says what it hears, a line for
// each message.
func station(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		messages := bufio.NewScanner(c)
		messages.Buffer(nil, 1<<20)
		messages.Split(bmp.SplitBMP)
		for messages.Scan() {
			line, err := heard(messages.Bytes())
			if err != nil {
				return err
			}
			fmt.Println(line)
		}
	}
}

func heard(raw []byte) (string, error) {
	var header bmp.BMPHeader
	if err := header.DecodeFromBytes(raw); err != nil {
		return "", err
	}
	if header.Type == bmp.BMP_MSG_PEER_DOWN_NOTIFICATION {
		// GoBGP leaves out the notification that its reason promises, where a
		// session is lost without one.
		var peer bmp.BMPPeerHeader
		err := peer.DecodeFromBytes(raw[bmp.BMP_HEADER_SIZE:])
		return fmt.Sprintf("down %s", peer.PeerAddress), err
	}
	m, err := bmp.ParseBMPMessage(raw)
	if err != nil {
		return "", err
	}
	peer := m.PeerHeader.PeerAddress
	switch body := m.Body.(type) {
	case *bmp.BMPInitiation:
		return "initiation", nil
	case *bmp.BMPPeerUpNotification:
		return fmt.Sprintf("up %s", peer), nil
	case *bmp.BMPRouteMonitoring:
		if u, ok := body.BGPUpdate.Body.(*bgp.BGPUpdate); ok {
			return fmt.Sprintf("route %s told %v withdrawn %v", peer, u.NLRI, u.WithdrawnRoutes), nil
		}
	}
	return fmt.Sprintf("message %d", header.Type), nil
}

// A station hears of sessions and routes, also of what policy rejects, and
// nothing of the speaker's own neighbour.
func TestMonitoringStation(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a quarter of a minute")
	}
	t.Parallel()
	z := newZone(t, 2)
	z.reflectors = z.reflectors[:1]
	r1, c1, c2 := z.reflectors[0], z.clients[0], z.clients[1]
	nms := z.host("nms", 250)
	self, err := os.Executable()
	must(t, err)
	at := netip.AddrPortFrom(nms.address, 11019)
	nms.begin([]string{stationEnvironment + "=" + at.String()}, self)
	z.extra = func(h *host, p *api.BGPPart) {
		if h == r1 {
			p.BMP = []netip.AddrPort{at}
		}
	}
	z.tell()
	for _, h := range []*host{r1, c1, c2} {
		h.speak()
	}
	hears := func(line string) func() error {
		return func() error {
			raw, err := os.ReadFile(filepath.Join(nms.dir, "log"))
			if err != nil || !strings.Contains("\n"+string(raw), "\n"+line) {
				return fmt.Errorf("the station has not heard %q: %v\n%s", line, err, raw)
			}
			return nil
		}
	}
	told := fmt.Sprintf("route %s told [%s]", c1.address, c1.own()[0])
	eventually(t, hears("initiation"), hears("up "+c1.address.String()), hears("up "+c2.address.String()), hears(told))
	c1.kill()
	eventually(t, hears("down "+c1.address.String()))
	if hears("up "+gateAddress().String())() == nil {
		t.Error("the station hears of the speaker's own neighbour")
	}
}
