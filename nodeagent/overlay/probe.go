package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Some kernels send wrong inner checksums when these are left to the device below a
// VXLAN (flannel's documentation, "tx-checksum-ip-generic off"; again since Linux 6.12
// in projectcalico/calico#11435). A probe tests this kernel once per boot: two
// temporary namespaces exchange packets over a VXLAN whose underlay computes no
// checksums itself, and the receiver counts the wrong ones. If nothing arrives, that
// proves nothing and changes nothing. The probe does not test a network card's driver.

const (
	// probeTime bounds the exchange of a probe.
	probeTime = 100 * time.Millisecond
	// probeTries are made, because on a busy machine, such as one that boots, packets may take longer than that.
	probeTries = 5
)

// verdictOfProbe is the probe's result as stored on disk.
type verdictOfProbe struct {
	Boot   string `json:"boot"`
	Kernel string `json:"kernel"`
	Wrong  bool   `json:"wrong"`
}

// checksumProbe knows whether this kernel's checksums are wrong. Only Reconcile asks.
type checksumProbe struct {
	file  string // stores the verdict for the next agent; "" for no file
	log   *slog.Logger
	done  bool
	wrong bool
}

// verdict returns the result from memory or from the file, or probes.
func (p *checksumProbe) verdict() bool {
	if p.done {
		return p.wrong
	}
	p.done = true
	is, err := thisBoot()
	if err != nil {
		p.log.Warn("overlay: cannot probe checksums inside VXLAN", "error", err)
		return false
	}
	if b, err := os.ReadFile(p.file); p.file != "" && err == nil {
		var was verdictOfProbe
		if json.Unmarshal(b, &was) == nil && was.Boot == is.Boot && was.Kernel == is.Kernel {
			p.wrong = was.Wrong
			return was.Wrong
		}
	}
	for range probeTries {
		if is.Wrong, err = probeChecksums(nil); err == nil {
			break
		}
	}
	if err != nil {
		p.log.Warn("overlay: the probe of checksums inside VXLAN did not finish; offload stays as it is", "error", err)
		return false
	}
	p.wrong = is.Wrong
	if p.file != "" {
		b, err := json.Marshal(is)
		if err = errors.Join(err, os.WriteFile(p.file, b, 0o600)); err != nil {
			p.log.Warn("overlay: cannot store the result of the checksum probe", "error", err)
		}
	}
	return is.Wrong
}

func thisBoot() (verdictOfProbe, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return verdictOfProbe{}, fmt.Errorf("read the boot id: %w", err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return verdictOfProbe{}, fmt.Errorf("read the kernel's release: %w", err)
	}
	return verdictOfProbe{Boot: strings.TrimSpace(string(boot)), Kernel: unix.ByteSliceToString(name.Release[:])}, nil
}

// probeChecksums reports whether a wrong checksum arrived. An error means that none
// did, but that some packets did not arrive. prepare, which may be nil, changes the
// receiver's namespace before anything is sent.
func probeChecksums(prepare func(place) error) (wrong bool, err error) {
	if err := settleNet(); err != nil {
		return false, err
	}
	var ends [2]place
	for i := range ends {
		if ends[i], err = throwAway(); err != nil {
			return false, err
		}
		defer ends[i].close()
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire0"}, PeerName: "wire0", PeerNamespace: netlink.NsFd(ends[1].ns)}
	if err := ends[0].LinkAdd(veth); err != nil {
		return false, fmt.Errorf("add a veth pair: %w", err)
	}
	for i := range ends {
		if err := probeEnd(ends[i], i); err != nil {
			return false, err
		}
	}
	if prepare != nil {
		if err := prepare(ends[1]); err != nil {
			return false, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTime)
	defer cancel()
	talk := errors.Join(probeUDP(ctx, ends), probeTCP(ctx, ends))
	count := 0
	for _, end := range ends {
		n, err := checksumErrors(end)
		if err != nil {
			return false, err
		}
		count += n
	}
	if count > 0 {
		return true, nil
	}
	return false, talk
}

// settleNet opens a socket in the process's namespace. With its first socket the net
// package determines, once and for all, whether there is IPv6; in a temporary
// namespace there is none.
func settleNet() error {
	conn, err := net.ListenPacket("udp", ":0")
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	return conn.Close()
}

// throwAway creates a namespace that only the handle holds: it ends with the process
// at the latest.
func throwAway() (place, error) {
	made := make(chan error, 1)
	var ns netns.NsHandle
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends in the new namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- fmt.Errorf("unshare: %w", err)
			return
		}
		var err error
		ns, err = netns.Get()
		made <- err
	}()
	if err := <-made; err != nil {
		return place{ns: netns.None()}, fmt.Errorf("make a network namespace: %w", err)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return place{ns: netns.None()}, fmt.Errorf("open netlink: %w", err)
	}
	return place{ns, h}, nil
}

func probeAddress(third, end int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(third), byte(1 + end)}), 30)
}

func probeEnd(p place, end int) error {
	wire, err := p.LinkByName("wire0")
	if err != nil {
		return fmt.Errorf("find the wire: %w", err)
	}
	vxlan := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vxlan0"}, VxlanId: 1, VtepDevIndex: wire.Attrs().Index, Port: Port,
		SrcAddr: probeAddress(0, end).Addr().AsSlice(), Group: probeAddress(0, 1-end).Addr().AsSlice()}
	err = errors.Join(setTxChecksum(p.ns, "wire0", false), setRxChecksum(p.ns, "wire0", false),
		p.AddrAdd(wire, toAddress(probeAddress(0, end))), p.LinkSetUp(wire), p.LinkAdd(vxlan))
	if err != nil {
		return fmt.Errorf("set the wire up: %w", err)
	}
	l, err := p.LinkByName("vxlan0")
	if err != nil {
		return fmt.Errorf("find the VXLAN: %w", err)
	}
	if err := errors.Join(p.AddrAdd(l, toAddress(probeAddress(1, end))), p.LinkSetUp(l)); err != nil {
		return fmt.Errorf("set the VXLAN up: %w", err)
	}
	return nil
}

func probeUDP(ctx context.Context, ends [2]place) error {
	var from, to net.PacketConn
	listen := func(i int, conn *net.PacketConn) func() error {
		return func() (err error) {
			*conn, err = net.ListenPacket("udp4", netip.AddrPortFrom(probeAddress(1, i).Addr(), 0).String())
			return err
		}
	}
	if err := within(ends[0].ns, listen(0, &from)); err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	if err := within(ends[1].ns, listen(1, &to)); err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	if _, err := from.WriteTo([]byte("rackweft"), to.LocalAddr()); err != nil {
		return fmt.Errorf("send a datagram: %w", err)
	}
	// Half of the time is TCP's.
	if err := to.SetReadDeadline(time.Now().Add(probeTime / 2)); err != nil {
		return err
	}
	if _, _, err := to.ReadFrom(make([]byte, 16)); err != nil {
		return fmt.Errorf("receive a datagram: %w", err)
	}
	return ctx.Err()
}

// probeTCP sends enough to be cut into segments below the VXLAN.
func probeTCP(ctx context.Context, ends [2]place) error {
	var l net.Listener
	err := within(ends[1].ns, func() (err error) {
		l, err = net.Listen("tcp4", netip.AddrPortFrom(probeAddress(1, 1).Addr(), 0).String())
		return err
	})
	if err != nil {
		return err
	}
	received := make(chan error, 1)
	const size = 32 << 10
	go func() {
		c, err := l.Accept()
		if err == nil {
			deadline, _ := ctx.Deadline()
			_, err = io.CopyN(io.Discard, c, size)
			err = errors.Join(err, c.SetDeadline(deadline), c.Close())
		}
		received <- err
	}()
	var c net.Conn
	err = within(ends[0].ns, func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp4", l.Addr().String())
		return err
	})
	if err == nil {
		deadline, _ := ctx.Deadline()
		err = c.SetDeadline(deadline)
		_, werr := c.Write(make([]byte, size))
		err = errors.Join(err, werr, c.Close())
	}
	if err != nil {
		_ = l.Close() // unblocks the receiver
	}
	err = errors.Join(err, <-received)
	_ = l.Close()
	if err != nil {
		return fmt.Errorf("send by TCP: %w", err)
	}
	return nil
}

// checksumErrors counts the wrong checksums that were received in a namespace.
func checksumErrors(p place) (count int, err error) {
	err = within(p.ns, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		count = countChecksumErrors(string(b))
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("read the counters: %w", err)
	}
	return count, nil
}

// countChecksumErrors adds up InCsumErrors of /proc/net/snmp: a line of names,
// then one of values, for each protocol.
func countChecksumErrors(text string) (count int) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || len(names) == 0 || names[0] != fields[0] {
			names = fields
			continue
		}
		for i, name := range names {
			if n, err := strconv.Atoi(fields[min(i, len(fields)-1)]); name == "InCsumErrors" && err == nil {
				count += n
			}
		}
		names = nil
	}
	return count
}

// offload turns checksum offload inside the VXLAN off if the kernel gets those
// checksums wrong.
func (w *work) offload() error {
	if !w.wrongChecksums {
		return nil
	}
	name := vxlanName(w.network.vni)
	on, err := txChecksum(w.tenant.ns, name)
	if err != nil || !on {
		return err
	}
	did(w, []change{change("turn off tx checksums of " + name)})
	return setTxChecksum(w.tenant.ns, name, false)
}
