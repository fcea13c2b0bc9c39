package overlay

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/rackweft/rackweft/internal/nft"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/nodeagent"
)

func TestProbe(t *testing.T) {
	nstest.Root(t, nstest.Namespaces)
	if probed(t) {
		t.Log("this kernel sends wrong checksums inside VXLAN")
	}
	// What arrives is changed, and no checksum is: UDP, VXLAN, Ethernet and IPv4
	// take 50 bytes of it.
	spoil := func(p place) error {
		c, err := nftables.New(nftables.WithNetNSFd(int(p.ns)))
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "spoil", Family: nftables.TableFamilyIPv4})
		chain := c.AddChain(&nftables.Chain{Name: "in", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
		rule := &nftables.Rule{Table: table, Chain: chain}
		for _, t := range []nft.Term{nft.IIF("wire0"), nft.UDP(Port)} {
			rule.Exprs = append(rule.Exprs, t.Exprs...)
		}
		rule.Exprs = append(rule.Exprs, &expr.Immediate{Register: 1, Data: []byte{0xff, 0xfe}},
			&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 58, Len: 2})
		c.AddRule(rule)
		return c.Flush()
	}
	var err error
	for range 50 {
		wrong := false
		if wrong, err = probeChecksums(spoil); wrong {
			return
		}
	}
	t.Errorf("wrong checksums are not noticed: %v", err)
}

// probed is the kernel's verdict. A probe gives up after a moment, which a busy
// machine may need more than once.
func probed(t *testing.T) (wrong bool) {
	t.Helper()
	var err error
	for range 50 {
		if wrong, err = probeChecksums(nil); err == nil {
			return wrong
		}
	}
	t.Fatal("no probe comes to a verdict: ", err)
	return false
}

func TestVerdictIsKeptForTheBoot(t *testing.T) {
	is, err := thisBoot()
	must(t, err)
	file := filepath.Join(t.TempDir(), "probe.json")
	answer := func(text string) bool {
		t.Helper()
		for range 50 { // a probe on a busy machine may come to no verdict, and then keeps none
			must(t, os.WriteFile(file, []byte(text), 0o600))
			f := newFabric(t, 1, false)
			o := f.hosts[0].overlay
			o.probe.file = file
			wrong := o.probe.verdict()
			if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), is.Boot) {
				return wrong
			}
		}
		t.Fatalf("after %q no verdict is kept", text)
		return false
	}
	if !answer(`{"boot":"` + is.Boot + `","kernel":"` + is.Kernel + `","wrong":true}`) {
		t.Error("the verdict of this boot is not believed")
	}
	real := probed(t)
	for _, text := range []string{`{"boot":"another","kernel":"` + is.Kernel + `","wrong":true}`, `{"wrong":`, ``} {
		if answer(text) != real {
			t.Errorf("%q is believed", text)
		}
	}
}

// Where checksums come out wrong their offload is turned off, and stays so.
func TestOffload(t *testing.T) {
	f := newFabric(t, 2, false)
	h := f.hosts[0]
	offload := func() bool {
		on, err := txChecksum(h.tenant(red()).ns, vxlanName(red().vni))
		must(t, err)
		return on
	}
	h.overlay.probe.done = true
	f.reconcile(red())
	if !offload() || !h.overlay.Stats()[0].Offload {
		t.Error("offload is off although nothing is wrong")
	}
	h.restart()
	h.overlay.probe.done, h.overlay.probe.wrong = true, true
	part := f.part(red(), 1)
	for range 2 {
		s := h.overlay.Reconcile(t.Context(), []nodeagent.Part{part})["network/red"]
		if s.State != "Applied" || !strings.Contains(s.Message, "wrong checksums") || offload() || h.overlay.Stats()[0].Offload {
			t.Errorf("offload %v, status %+v", offload(), s)
		}
		must(t, setTxChecksum(h.tenant(red()).ns, vxlanName(red().vni), true))
	}
	if h.overlay.repairs("red") == 0 {
		t.Error("the repair was not counted")
	}
	h.overlay.Reconcile(t.Context(), []nodeagent.Part{part})
	f.allPairs(red())
}

func TestCountChecksumErrors(t *testing.T) {
	const text = "Ip: Forwarding InCsumErrors\nIp: 1 7\nTcp: A InCsumErrors B\nTcp: 1 2 3\nUdp: InCsumErrors\nUdp: 4\n"
	if got := countChecksumErrors(text); got != 13 {
		t.Errorf("%d", got)
	}
	for _, bad := range []string{"", "Tcp:\nTcp:\n", "Tcp: InCsumErrors\n", "Tcp: InCsumErrors\nTcp: x\n"} {
		if got := countChecksumErrors(bad); got != 0 {
			t.Errorf("%q counts as %d", bad, got)
		}
	}
}
