// Package wgtest makes WireGuard devices for tests: by WireGuard's own
// userspace implementation, which needs no kernel that has it, and is spoken to
// through the sockets that it has for that.
package wgtest

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/rackweft/rackweft/nodeagent/wireguard"
)

// socketDir is where wgctrl looks for devices in user space.
const socketDir = "/var/run/wireguard"

// Driver makes devices in the network namespace of the thread that calls its
// Make. They go with the test.
func Driver(t testing.TB) wireguard.Driver {
	t.Helper()
	var b [6]byte
	if _, err := rand.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	d := &driver{socket: "rackweft-" + hex.EncodeToString(b[:])}
	t.Cleanup(d.close)
	return wireguard.Driver{Kind: "tuntap", Make: d.make, Open: d.open}
}

type driver struct {
	socket string // name of the device's socket: names of devices meet in other namespaces

	mu   sync.Mutex
	made *made
}

type made struct {
	device *device.Device
	uapi   net.Listener
	ns     netns.NsHandle
	served sync.WaitGroup
}

func (d *driver) make(_ *netlink.Handle, name string) error {
	d.close() // its interface was deleted
	ns, err := netns.Get()
	if err != nil {
		return err
	}
	link, err := tun.CreateTUN(name, 1500)
	if err != nil {
		return fmt.Errorf("make a TUN device: %w", err)
	}
	if err := os.MkdirAll(socketDir, 0o755); err != nil {
		return err
	}
	uapi, err := net.Listen("unix", filepath.Join(socketDir, d.socket+".sock"))
	if err != nil {
		return err
	}
	m := &made{uapi: uapi, ns: ns, device: device.NewDevice(link, bind{conn.NewStdNetBind(), ns}, device.NewLogger(device.LogLevelSilent, ""))}
	m.served.Go(func() {
		for {
			c, err := uapi.Accept()
			if err != nil {
				return
			}
			m.served.Go(func() { m.device.IpcHandle(c) })
		}
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.made = m
	return nil
}

func (d *driver) close() {
	d.mu.Lock()
	m := d.made
	d.made = nil
	d.mu.Unlock()
	if m == nil {
		return
	}
	_ = m.uapi.Close()
	m.device.Close()
	m.served.Wait()
	_ = m.ns.Close()
}

func (d *driver) open() (wireguard.Client, error) {
	c, err := wgctrl.New()
	return client{c, d.socket}, err
}

// client knows the device by the name of its socket.
type client struct {
	*wgctrl.Client
	socket string
}

func (c client) Device(string) (*wgtypes.Device, error) { return c.Client.Device(c.socket) }
func (c client) ConfigureDevice(_ string, config wgtypes.Config) error {
	return c.Client.ConfigureDevice(c.socket, config)
}

// bind opens its sockets in the device's network namespace, whichever thread
// asks for them.
type bind struct {
	conn.Bind
	ns netns.NsHandle
}

func (b bind) Open(port uint16) (receive []conn.ReceiveFunc, actual uint16, err error) {
	failed := Within(b.ns, func() error {
		receive, actual, err = b.Bind.Open(port)
		return err
	})
	return receive, actual, failed
}

// Within runs f on a thread that is in the network namespace ns.
func Within(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
