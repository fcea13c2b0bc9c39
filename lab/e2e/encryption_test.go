package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/namespace"
	"github.com/rackweft/rackweft/lab"
	"github.com/rackweft/rackweft/lab/rig"
)

// tenantWords are in every packet that one host sends to the other for a tenant.
const tenantWords = "rackweft-tenant-"

// TestEncryptedZone has two hosts whose kernel has WireGuard, with Networks between them: under systemd's
// sandbox, from their first boot on, and nothing of it is to be read on the wire.
func TestEncryptedZone(t *testing.T) {
	t.Parallel()
	r := rig.Up(t, rig.Options{Machines: lab.DefaultMachines()[:2], Manifests: encryptedZone})
	w := tapWire(t, r, "r1u01-prod")
	r.Apply(r.File("networks.yaml", `apiVersion: rackweft/v1alpha1
kind: Network
metadata: {name: customer-a}
spec: {zone: yellow, cidrs: [10.5.0.0/16]}
---
apiVersion: rackweft/v1alpha1
kind: Network
metadata: {name: customer-b}
spec: {zone: yellow, cidrs: [10.5.0.0/16]}
`))
	keys := map[string]bool{}
	for _, name := range []string{bios, uefi} {
		r.WaitActive(name)
		m := r.WaitMachine(name, "both Networks applied", func(m *api.Machine) bool {
			return m.Status.Conditions.Is(api.CondApplied) && m.Status.Host.Parts[api.NetworkPartName("customer-a")].State == api.PartApplied &&
				m.Status.Host.Parts[api.NetworkPartName("customer-b")].State == api.PartApplied
		})
		keys[m.Status.Host.WireGuardKey] = true
	}
	if len(keys) != 2 || keys[""] {
		t.Errorf("the hosts have the keys %v", keys)
	}
	for _, name := range []string{bios, uefi} {
		waitConsole(t, r, name, `reached [0-9./]+ in rackweft-customer-a`)
		waitConsole(t, r, name, `reached [0-9./]+ in rackweft-customer-b`)
	}
	if sealed, clear, inner := w.seen(); sealed == 0 || clear != 0 || inner != 0 {
		t.Errorf("on the wire: %d packets of WireGuard, %d of VXLAN, %d with a tenant's words", sealed, clear, inner)
	}
}

// encryptedZone changes the rack's manifests.
func encryptedZone(name string, content []byte) []byte {
	switch name {
	case "zone.yaml":
		return append(content, "  encryption: wireguard\n"...)
	case "profile.yaml":
		return bytes.Replace(content, []byte("layers: [site,"), []byte("layers: [pinger, site,"), 1)
	case "layers.yaml":
		return append(append(content, "\n---\n"...), pinger...)
	}
	return content
}

// pinger is a Layer: its hosts try to reach the others' end of every Network, and say so on their console.
// -p repeats tenantWords.
var pinger = fmt.Sprintf(`apiVersion: rackweft/v1alpha1
kind: Layer
metadata: {name: pinger}
spec:
  butane: |
    storage:
      files:
        - path: /opt/pinger
          mode: 0755
          contents:
            inline: |
              #!/bin/sh
              while sleep 2; do
                for ns in $(ip netns list | sed 's/ .*//'); do
                  for lease in $(ip -n "$ns" route show | sed -n 's/^\([0-9.]*\/24\) .*flannel.*/\1/p'); do
                    ip netns exec "$ns" ping -c1 -W5 -s1300 -p %x "${lease%%.0/24}.1" >/dev/null && echo "reached $lease in $ns" >/dev/console
                  done
                done
              done
    systemd:
      units:
        - name: pinger.service
          enabled: true
          contents: |
            [Service]
            ExecStart=/opt/pinger
            [Install]
            WantedBy=multi-user.target
`, tenantWords)

// hostWire counts the packets on one link of the rack.
type hostWire struct {
	mu                   sync.Mutex
	sealed, clear, inner int
}

func (w *hostWire) seen() (sealed, clear, inner int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sealed, w.clear, w.inner
}

func (w *hostWire) saw(frame []byte) {
	const udpPort = 14 + 20 + 2 // Ethernet, IPv4, the source port
	if len(frame) < udpPort+2 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if bytes.Contains(frame, []byte(tenantWords)) {
		w.inner++
	}
	switch {
	case frame[12] != 8 || frame[13] != 0 || frame[14+9] != unix.IPPROTO_UDP:
	case int(frame[udpPort])<<8|int(frame[udpPort+1]) == 8472:
		w.clear++
	case int(frame[udpPort])<<8|int(frame[udpPort+1]) == api.WireGuardPort:
		w.sealed++
	}
}

// tapWire reads along on a link in the rack's room until the test ends.
func tapWire(t *testing.T, r *rig.Rig, link string) *hostWire {
	t.Helper()
	room, _ := r.Rack.Namespaces()
	fd, err := packetSocket(filepath.Join("/run/netns", room), link)
	if err != nil {
		t.Fatal(err)
	}
	w := new(hostWire)
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		b := make([]byte, 65536)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if n, _, err := unix.Recvfrom(fd, b, 0); err == nil {
				w.saw(b[:n])
			}
		}
	})
	t.Cleanup(func() { close(stop); reader.Wait(); _ = unix.Close(fd) })
	return w
}

func packetSocket(path, link string) (fd int, err error) {
	err = namespace.Within(path, func() error {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		timeout := unix.NsecToTimeval(int64(100 * time.Millisecond))
		return errors.Join(
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		)
	})
	return fd, err
}
