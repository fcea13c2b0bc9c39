package bootd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/mdlayher/packet"
	"github.com/vincent-petithory/dataurl"

	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// wire is an attacker between a Machine and bootd. Its front answers the Machine
// in bootd's place; its back speaks to bootd from the address that is leased to
// the Machine, and takes the Secrets that get out.
type wire struct {
	v           *victim
	front, back *party
	at          netip.Addr // where the front answers

	endsTLS bool                             // with a certificate of its own; else TLS passes it as it is
	rewrite func(path, answer string) string // what the Machine is given in place of bootd's answer
	cert    tls.Certificate
	stop    []func()

	mu   sync.Mutex
	read strings.Builder // all that it can read
	log  strings.Builder // of its TLS server
	loot loot            // what it was given, or the Machine through it
}

// newWire puts the two ends of an attacker on the segment.
func newWire(v *victim) *wire {
	v.t.Helper()
	end := func(vendor string) *party {
		p := v.attach(strings.Replace(v.mac, "52:54:00:01", "52:54:00:"+vendor, 1))
		p.alone = true
		v.run("ip", "-n", v.ns, "link", "set", p.port, "up")
		return p
	}
	w := &wire{v: v, front: end("fa"), back: end("fb")}
	v.t.Cleanup(w.end)
	return w
}

// end takes the attacker off the segment.
func (w *wire) end() {
	for _, stop := range w.stop {
		stop()
	}
	w.stop = nil
}

// inTheMiddle claims by ARP, to the Machine, to be bootd and, to bootd, to be the
// Machine. Nobody else on the segment hears of it.
func (w *wire) inTheMiddle(real *party) {
	v := w.v
	v.t.Helper()
	w.at = netip.MustParseAddr(bootdAddress)
	v.run("ip", "netns", "exec", w.front.ns, "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=8")
	v.run("ip", "-n", w.front.ns, "addr", "add", bootdAddress+"/24", "dev", "eth0")
	v.run("ip", "-n", w.front.ns, "neigh", "add", real.address.String(), "lladdr", v.mac, "dev", "eth0", "nud", "permanent")
	v.run("ip", "-n", w.back.ns, "addr", "add", real.address.String()+"/24", "dev", "eth0")
	v.run("ip", "-n", w.back.ns, "neigh", "add", bootdAddress, "lladdr", v.rig.mac, "dev", "eth0", "nud", "permanent")
	w.claim(w.front, bootdAddress, v.mac)
	w.claim(w.back, real.address.String(), v.rig.mac)
	for range 200 {
		for _, p := range []*party{real, w.back} {
			knock(v.t, p.ns) // whoever is asked for an address keeps the answer
		}
		if neighbour(v.t, real.ns, "eth0", bootdAddress) == w.front.mac && neighbour(v.t, v.ns, "br0", real.address.String()) == w.back.mac {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	v.t.Fatal("neither the Machine nor bootd believes the forged ARP: then this test shows nothing")
}

// knock sends bootd a datagram that nobody reads.
func knock(t *testing.T, ns string) {
	t.Helper()
	err := nstest.Within(ns, func() error {
		c, err := net.Dial("udp4", net.JoinHostPort(bootdAddress, "9"))
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("?"))
		return errors.Join(err, c.Close())
	})
	if err != nil && !strings.Contains(err.Error(), "refused") {
		t.Fatal(err)
	}
}

// neighbour is the MAC that a kernel takes an address to be at.
func neighbour(t *testing.T, ns, dev, address string) string {
	t.Helper()
	out, err := exec.Command("ip", "-n", ns, "neigh", "show", address, "dev", dev).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(out), "lladdr ")
	mac, _, _ := strings.Cut(after, " ")
	return mac
}

// claim says every few milliseconds, to one MAC alone, that an address is at the
// party's, by the gratuitous ARP (RFC 5227 §3) that overrides what is known.
func (w *wire) claim(p *party, address, to string) {
	w.v.t.Helper()
	own, victim := mustMAC(w.v.t, p.mac), mustMAC(w.v.t, to)
	ip := netip.MustParseAddr(address).As4()
	frame := bytes.Join([][]byte{victim, own, {8, 6, 0, 1, 8, 0, 6, 4, 0, 2}, own, ip[:], own, ip[:]}, nil)
	var c *packet.Conn
	err := nstest.Within(p.ns, func() error {
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c, err = packet.Listen(dev, packet.Raw, 0x0806, nil)
		return err
	})
	if err != nil {
		w.v.t.Fatal(err)
	}
	over, done := make(chan struct{}), make(chan struct{})
	w.stop = append(w.stop, func() { close(over); <-done; _ = c.Close() })
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			_, _ = c.WriteTo(frame, &packet.Addr{HardwareAddr: victim})
			select {
			case <-tick.C:
			case <-over:
				return
			}
		}
	}()
}

func mustMAC(t *testing.T, s string) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

// byDHCP answers the Machine's DHCP in bootd's place, with an address and a boot
// file of its own, and has leased the Machine's address itself.
func (w *wire) byDHCP() {
	v := w.v
	v.t.Helper()
	n := mustMAC(v.t, v.mac)[4]
	w.at = netip.AddrFrom4([4]byte{198, 18, 0, 200 + n})
	v.run("ip", "-n", w.front.ns, "addr", "add", w.at.String()+"/24", "dev", "eth0")
	w.back.leaseBy(func(ctx context.Context, c *nclient4.Client) (*nclient4.Lease, error) {
		return c.Request(ctx, asIPXE()...)
	},
		nclient4.WithHWAddr(mustMAC(v.t, v.mac)))
	var c net.PacketConn
	err := nstest.Within(w.front.ns, func() (err error) { c, err = net.ListenPacket("udp4", ":67"); return err })
	if err != nil {
		v.t.Fatal(err)
	}
	done := make(chan struct{})
	w.stop = append(w.stop, func() { _ = c.Close(); <-done })
	go func() {
		defer close(done)
		w.answerDHCP(c, net.IPv4(198, 18, 0, 220+n).To4())
	}()
}

// answerDHCP gives an address to the Machine, and itself as its boot server.
func (w *wire) answerDHCP(c net.PacketConn, gives net.IP) {
	buf := make([]byte, 1500)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		m, err := dhcpv4.FromBytes(buf[:n])
		if err != nil || m.ClientHWAddr.String() != w.v.mac {
			continue
		}
		kind := dhcpv4.MessageTypeOffer
		if m.MessageType() == dhcpv4.MessageTypeRequest {
			kind = dhcpv4.MessageTypeAck
		}
		own := net.IP(w.at.AsSlice())
		answer, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(gives), dhcpv4.WithServerIP(own),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(own)), dhcpv4.WithLeaseTime(3600), dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
			dhcpv4.WithOption(dhcpv4.OptBootFileName("http://"+w.at.String()+":8080/boot.ipxe")))
		if err == nil {
			_, _ = c.WriteTo(answer.ToBytes(), &net.UDPAddr{IP: net.IPv4(198, 18, 0, 255), Port: 68})
		}
	}
}

// leaseFrom does DHCP until that server is the first to answer.
func (p *party) leaseFrom(server netip.Addr) {
	p.v.t.Helper()
	p.leaseBy(func(ctx context.Context, c *nclient4.Client) (*nclient4.Lease, error) {
		for range 50 {
			offer, err := c.DiscoverOffer(ctx, asIPXE()...)
			if err != nil {
				return nil, err
			}
			if offer.ServerIdentifier().Equal(server.AsSlice()) {
				return c.RequestFromOffer(ctx, offer, asIPXE()...)
			}
		}
		return nil, errors.New("bootd was the first to answer, fifty times")
	})
}

// listen has the front speak HTTP, and TLS or what passes it.
func (w *wire) listen() {
	w.v.t.Helper()
	w.cert = impostor(w.v.t, w.at)
	var plain, secure net.Listener
	err := nstest.Within(w.front.ns, func() (err error) {
		if plain, err = net.Listen("tcp4", w.at.String()+":8080"); err != nil {
			return err
		}
		secure, err = net.Listen("tcp4", w.at.String()+":8443")
		return err
	})
	if err != nil {
		w.v.t.Fatal(err)
	}
	server := &http.Server{Handler: w, ErrorLog: log.New(w, "", 0), TLSConfig: &tls.Config{Certificates: []tls.Certificate{w.cert}}}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { _ = server.Serve(plain) })
	if w.endsTLS {
		all.Go(func() { _ = server.ServeTLS(secure, "", "") })
	} else {
		all.Go(func() { w.pass(ctx, secure) })
	}
	w.stop = append(w.stop, func() {
		cancel()
		_ = server.Close()
		_ = secure.Close()
		all.Wait()
		for _, p := range []*party{w.front, w.back} {
			w.v.run("ip", "-n", w.v.ns, "link", "set", p.port, "down")
		}
	})
}

// impostor is a certificate for bootd's address by a CA of the attacker's, which
// is its second certificate.
func impostor(t *testing.T, at netip.Addr) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(template, parent *x509.Certificate) []byte {
		template.NotBefore, template.NotAfter = time.Unix(0, 0), time.Now().Add(24*time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "rackweft"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	root := sign(ca, ca)
	leaf := sign(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "bootd"}, IPAddresses: []net.IP{at.AsSlice()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca)
	return tls.Certificate{Certificate: [][]byte{leaf, root}, PrivateKey: key}
}

// Write takes what the TLS server says of handshakes.
func (w *wire) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(line)
}

// heard is all that the attacker could read.
func (w *wire) heard() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.read.String()
}

// broken is what the Machine has said of the attacker's certificate.
func (w *wire) broken() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.String()
}

// brokenOff waits until a handshake with the attacker was broken off.
func (w *wire) brokenOff() bool {
	return waittest.Soon(20*time.Second, func() bool { return strings.Contains(w.broken(), "TLS handshake error") })
}

// ServeHTTP asks bootd what the Machine asks, and answers what it likes.
func (w *wire) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	at := "http://" + bootdAddress + ":8080"
	if r.TLS != nil {
		at = "https://" + bootdAddress + ":8443"
	}
	_, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	status, answer := w.back.do(r.Method, at+r.URL.RequestURI(), token, string(body))
	w.mu.Lock()
	w.read.WriteString(r.URL.RequestURI() + " " + token + "\n" + answer + "\n")
	w.mu.Unlock()
	if w.rewrite != nil {
		answer = w.rewrite(r.URL.Path, answer)
	}
	out.WriteHeader(status)
	_, _ = io.WriteString(out, answer)
}

// pass hands TLS on as it is.
func (w *wire) pass(ctx context.Context, l net.Listener) {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		all.Go(func() {
			var far net.Conn
			err := nstest.Within(w.back.ns, func() (err error) {
				far, err = net.DialTimeout("tcp4", bootdAddress+":8443", 10*time.Second)
				return err
			})
			if err != nil {
				_ = near.Close()
				return
			}
			splice(ctx, near, far)
		})
	}
}

// splice copies both ways until either side ends.
func splice(ctx context.Context, near, far net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _, _ = near.Close(), far.Close() })
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(far, near); cancel() })
	both.Go(func() { _, _ = io.Copy(near, far); cancel() })
	both.Wait()
	stop()
	_, _ = near.Close(), far.Close()
}

// takesFirst uses what a script says before the Machine has it.
func (w *wire) takesFirst(_, answer string) string {
	if at := pointerIn(answer); at != "" {
		l := loot{pointer: at}
		w.back.fetchPointer(&l)
		w.back.fetchConfig(&l)
		w.mu.Lock()
		w.loot = l
		w.mu.Unlock()
	}
	return answer
}

// stolen is what the attacker has.
func (w *wire) stolen() *loot {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.loot
	return &l
}

// inItsPlace has the Machine come to the attacker with all that it does, and
// trust it.
func (w *wire) inItsPlace(path, answer string) string {
	switch {
	case strings.HasPrefix(path, "/ignition/pointer/"):
		root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.cert.Certificate[1]})
		answer = regexp.MustCompile(`data:[^"]*`).ReplaceAllString(answer, dataurl.EncodeBytes(root))
	case strings.HasPrefix(path, "/v1/ignition/"):
		w.mu.Lock()
		defer w.mu.Unlock()
		w.loot.join = joinTokenIn(w.v.t, answer)
		return answer
	}
	return strings.ReplaceAll(answer, bootdAddress, w.at.String())
}
