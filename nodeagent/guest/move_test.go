package guest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait/waittest"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/guest/qmp"
	"github.com/rackweft/rackweft/nodeagent/guest/transfer"
)

// credentials are those that pair has put into DIR/own.pem.
func credentials(dir string) transfer.Credentials {
	return func(context.Context) (nodeagent.Credentials, error) {
		raw, err := os.ReadFile(filepath.Join(dir, "own.pem"))
		if err != nil {
			return nodeagent.Credentials{}, err
		}
		own, err := tls.X509KeyPair(raw, raw)
		if err != nil {
			return nodeagent.Credentials{}, err
		}
		ca, err := x509.ParseCertificate(own.Certificate[1])
		return nodeagent.Credentials{Certificate: own, Roots: []*x509.Certificate{ca}}, err
	}
}

// pair is two hosts of one site, and a Guest that moves between them.
type pair struct {
	t        *testing.T
	from, to *host
	peers    map[*host]api.HostIdentity
	address  netip.Addr // of the target
	uid      string
	value    *api.GuestPart
	live     bool
	watch    sync.WaitGroup
	done     chan struct{}
}

func newPair(t *testing.T, uid string) *pair {
	t.Helper()
	p := &pair{t: t, from: newHost(t), to: newHost(t), peers: map[*host]api.HostIdentity{}, uid: uid, done: make(chan struct{})}
	sum := sha256.Sum256([]byte(t.Name()))
	p.address = netip.AddrFrom4([4]byte{127, 128 | sum[0], sum[1], sum[2] | 2})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "site"}, NotBefore: time.Unix(1, 0), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	p.issue(p.from, "h1", ca, key)
	p.issue(p.to, "h2", ca, key)
	return p
}

func (p *pair) issue(h *host, name string, ca *x509.Certificate, by *ecdsa.PrivateKey) {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	root, err := x509.CreateCertificate(rand.Reader, ca, ca, by.Public(), by)
	if err != nil {
		p.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "host:" + name},
		NotBefore: time.Unix(1, 0), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{{Scheme: "rackweft", Host: "host", Path: "/" + name + "/uid-" + name}}}, ca, key.Public(), by)
	if err != nil {
		p.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	var raw []byte
	for _, b := range []*pem.Block{{Type: "CERTIFICATE", Bytes: der}, {Type: "CERTIFICATE", Bytes: root}, {Type: "PRIVATE KEY", Bytes: private}} {
		raw = append(raw, pem.EncodeToMemory(b)...)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "own.pem"), raw, 0o600); err != nil {
		p.t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		p.t.Fatal(err)
	}
	sum := sha256.Sum256(spki)
	p.peers[h] = api.HostIdentity{Host: name, UID: "uid-" + name, Key: hex.EncodeToString(sum[:])}
}

const moveID = "move-1"

// part is what bootd tells a host in a role of the move, "" for none.
func (p *pair) part(role string) nodeagent.Part {
	return part(p.uid, p.uid, p.value, func(v *api.GuestPart) {
		v.Disks = append([]api.GuestDisk{}, v.Disks...)
		switch role {
		case "":
			return
		case api.TransferLeft:
			v.State = "Stopped"
		}
		if role == api.TransferLeft || role == api.TransferTarget {
			for i := range v.Disks {
				v.Disks[i].Retain = false
			}
		}
		v.Transfer = &api.GuestTransfer{ID: moveID, Role: role, Peer: p.peers[p.to], Address: p.address, Live: p.live}
		if role == api.TransferTarget {
			v.Transfer.Peer = p.peers[p.from]
		}
	})
}

// said is what a host says of its share, out of the file of its agent.
func (p *pair) said(h *host) string {
	s := p.status(h)
	if s.Guest == nil || s.Guest.Transfer == nil {
		return ""
	}
	return s.Guest.Transfer.State
}

func (p *pair) status(h *host) api.PartStatus {
	raw, err := os.ReadFile(filepath.Join(h.dir, "status"))
	var all map[string]api.PartStatus
	if err != nil || json.Unmarshal(raw, &all) != nil {
		return api.PartStatus{}
	}
	return all["guest/"+p.uid]
}

func (p *pair) wait(what string, f func() bool) {
	p.t.Helper()
	if waittest.Soon(90*time.Second, f) {
		return
	}
	a, _ := json.Marshal(p.status(p.from))
	b, _ := json.Marshal(p.status(p.to))
	p.t.Fatalf("never came true: %s\nsource %s\ntarget %s", what, a, b)
}

// keep runs an agent, and again whenever it has ended. crash is the point at
// which the first of them does.
func (p *pair) keep(h *host, crash string) {
	p.t.Helper()
	self, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	p.watch.Go(func() {
		for {
			cmd := exec.Command(self, "agent", h.dir)
			cmd.Env = append(os.Environ(), crashAt+"="+crash)
			log, err := os.OpenFile(filepath.Join(h.dir, "agent.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
			if err == nil {
				cmd.Stderr = log
				err = cmd.Start()
			}
			if err != nil {
				p.t.Errorf("start an agent: %v", err)
				return
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			select {
			case <-ended:
				_ = os.WriteFile(filepath.Join(h.dir, "crashed"), []byte(crash), 0o600)
			case <-p.done:
				_ = cmd.Process.Kill()
				<-ended
			}
			_ = log.Close()
			select {
			case <-p.done:
				return
			default:
				crash = ""
			}
		}
	})
}

// guard makes sure, all the time, that the Guest runs once.
func (p *pair) guard() {
	p.watch.Go(func() {
		for {
			select {
			case <-p.done:
				return
			case <-time.After(10 * time.Millisecond):
			}
			if !p.live {
				if n := p.from.qemus(p.uid); n > 1 {
					p.t.Errorf("%d QEMUs of it are there", n)
					return
				}
				continue
			}
			// In this order: the source may have run until the target began.
			if lets(p.to, p.uid) && lets(p.from, p.uid) {
				p.t.Error("it runs on both hosts")
				return
			}
		}
	})
}

// lets asks a QEMU of the Guest, over its second monitor, whether it lets it run.
func lets(h *host, uid string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := qmp.Dial(ctx, filepath.Join(h.runDir(uid), "monitor.sock"), nil)
	if err != nil {
		return false
	}
	defer c.Close()
	var status struct{ Running bool }
	return c.Execute(ctx, "query-status", nil, &status) == nil && status.Running
}

func (p *pair) end() {
	close(p.done)
	p.watch.Wait()
	if !p.t.Failed() {
		return
	}
	for _, h := range []*host{p.from, p.to} {
		raw, _ := os.ReadFile(filepath.Join(h.dir, "agent.log"))
		p.t.Logf("%s: %s", p.peers[h].Host, raw[max(0, len(raw)-6000):])
	}
}

func (p *pair) runs(h *host) func() bool {
	return func() bool {
		s := p.status(h)
		return s.State == api.PartApplied && s.Guest != nil && s.Guest.State == "Running" && s.Guest.Transfer == nil
	}
}

// mark is what the Guest's retained disk holds: it is written into it while
// nothing runs, and looked for at the end.
func (p *pair) mark() []byte { return []byte("the disk of " + p.t.Name()) }

func (p *pair) disk(h *host) string {
	return filepath.Join(h.guestDir(p.uid), "disks", "data.raw")
}

func (p *pair) writeMark() {
	p.t.Helper()
	f, err := os.OpenFile(p.disk(p.from), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(p.mark(), 3<<20)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *pair) hasMark(h *host) bool {
	raw, err := os.ReadFile(p.disk(h))
	return err == nil && strings.Contains(string(raw), string(p.mark()))
}

// begin has a bare Guest run on the one host, and the other begin to take it in.
func (p *pair) begin(crashFrom, crashTo string) {
	p.t.Helper()
	p.value = bare(p.from)
	p.value.Disks = append(p.value.Disks, api.GuestDisk{Name: "data", Size: quantity("8Mi"), Retain: true, Format: "raw"})
	p.from.write(p.part(""))
	p.to.write()
	p.keep(p.from, crashFrom)
	p.keep(p.to, crashTo)
	p.guard()
	p.wait("it runs", p.runs(p.from))
	p.writeMark()
	p.from.write(p.part(api.TransferSource))
	p.to.write(p.part(api.TransferTarget))
}

// arrive is bootd's switch-over, and what follows of it.
func (p *pair) arrive() {
	p.t.Helper()
	p.wait("all is there", func() bool { return p.said(p.from) == api.TransferSent && p.said(p.to) == api.TransferReceived })
	if n := p.from.qemus(p.uid); n != 0 && !p.live {
		p.t.Errorf("%d QEMUs of it are there", n)
	}
	p.from.write(p.part(api.TransferLeft))
	p.to.write(p.part(""))
	p.wait("it runs on the target", p.runs(p.to))
	if !p.hasMark(p.to) || !p.hasMark(p.from) {
		p.t.Errorf("its disk has what it had: %t on the target, %t on the source", p.hasMark(p.to), p.hasMark(p.from))
	}
	p.forget(p.from, p.uid)
}

// forget is a tombstone: nothing is left of a copy.
func (p *pair) forget(h *host, uid string) {
	p.t.Helper()
	h.write(removed(uid, uid))
	p.wait("nothing is left on "+p.peers[h].Host, func() bool {
		_, err := os.Stat(h.guestDir(uid))
		retained, _ := filepath.Glob(filepath.Join(h.dir, "state", "retained", "*", "*", "*"))
		return os.IsNotExist(err) && len(retained) == 0
	})
	if n := p.from.qemus(uid); n != 1 {
		p.t.Errorf("%d QEMUs of it run", n)
	}
}

// back gives the move up.
func (p *pair) back() {
	p.t.Helper()
	p.from.write(p.part(api.TransferBack))
	p.wait("it is taken back", func() bool { return p.said(p.from) == api.TransferredBack })
	p.from.write(p.part(""))
	p.wait("it runs where it was", p.runs(p.from))
	if !p.hasMark(p.from) {
		p.t.Error("its disk has lost what it had")
	}
	p.forget(p.to, p.uid)
}

// sourcePoints and targetPoints are all that leave something else behind when an
// agent ends there.
func sourcePoints() []string {
	return []string{"source: not given up yet", "source: given up, still running", "source: stopped", "source: sending", "source: sent, not said"}
}

func backPoints() []string {
	return []string{"source: to take it back", "source: taken back, not said"}
}

func targetPoints() []string {
	return []string{"target: receiving", "target: received, not in place", "target: in place, not written down", "target: in place, not answered", "target: received, not said"}
}

// Wherever an agent is killed in a move, its Guest runs on one host, never on
// two, and has its disks; whether the move is gone through with or given up.
func TestCrashesInAMove(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many QEMUs")
	}
	for name, points := range map[string][]string{
		"done":     append(append([]string{""}, sourcePoints()...), targetPoints()...),
		"given up": append(backPoints(), "source: given up, still running", "source: sending", "source: sent, not said", "target: in place, not answered"),
	} {
		for _, point := range points {
			done, onlyBack := name == "done", slices.Contains(backPoints(), point)
			t.Run(name+"/"+strings.ReplaceAll(point, " ", "-"), func(t *testing.T) {
				t.Parallel()
				p := newPair(t, "move-"+hexOf(t.Name()))
				defer p.end()
				from, to := point, ""
				if strings.HasPrefix(point, "target") {
					from, to = "", point
				}
				p.begin(from, to)
				if done {
					p.arrive()
				} else {
					p.wait("it is as far as it is to come", func() bool { return onlyBack || p.crashed(point) || p.said(p.to) == api.TransferReceived })
					p.back()
				}
				if point != "" && !p.crashed(point) {
					t.Errorf("nothing has crashed at %q", point)
				}
			})
		}
	}
}

func (p *pair) crashed(point string) bool {
	h := p.from
	if strings.Contains(point, "target:") {
		h = p.to
	}
	raw, err := os.ReadFile(filepath.Join(h.dir, "crashed"))
	return err == nil && string(raw) == point && point != ""
}

func hexOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}
