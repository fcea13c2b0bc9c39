package overlay

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

// agent is the built nodeagent on a host of the fabric. There is no bootd: it
// works from the HostSpec that the test has put into its cache.
type agent struct {
	host     *testHost
	binary   string
	dir      string // of config, state and run
	revision int64
	cmd      *exec.Cmd
	log      *os.File
}

// newAgent comes before the host's first Network: it moves the namespaces to
// where the agent has them.
func newAgent(t testing.TB, h *testHost) *agent {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and runs nodeagent: not under -short")
	}
	a := &agent{host: h, dir: t.TempDir()}
	h.dir = filepath.Join(a.dir, "run", "netns")
	must(t, os.MkdirAll(h.dir, 0o700))
	t.Cleanup(h.cleanup)
	h.restart()
	a.binary = filepath.Join(a.dir, "nodeagent")
	build := exec.Command("go", "build", "-trimpath", "-o", a.binary, "../../cmd/nodeagent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build nodeagent: %v\n%s", err, out)
	}
	config, err := yaml.Marshal(api.AgentConfig{Machine: h.name, UID: "uid-" + h.name, AttemptID: "a1",
		API: []string{"https://198.18.0.250:8443"}, CA: someCA(t)})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(a.dir, "nodeagent.yaml"), config, 0o600))
	a.log, err = os.Create(filepath.Join(a.dir, "log"))
	must(t, err)
	t.Cleanup(func() {
		a.kill()
		_ = a.log.Close()
		if text, err := os.ReadFile(a.log.Name()); err == nil && t.Failed() {
			t.Logf("nodeagent:\n%s", text)
		}
	})
	return a
}

// someCA is a certificate of nobody's.
func someCA(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// cache writes a HostSpec as the agent keeps it.
func (a *agent) cache(parts ...nodeagent.Part) {
	t := a.host.fabric.t
	t.Helper()
	type entry struct {
		Digest string `json:"digest"`
		UID    string `json:"uid"`
	}
	a.revision++
	index := struct {
		Epoch    int64            `json:"epoch"`
		Revision int64            `json:"revision"`
		Parts    map[string]entry `json:"parts"`
	}{1, a.revision, map[string]entry{}}
	dir := filepath.Join(a.dir, "state", "hostspec")
	must(t, os.MkdirAll(filepath.Join(dir, "parts"), 0o700))
	base := nodeagent.Part{Name: api.PartBase, UID: "uid-" + a.host.name, Value: &api.BasePart{UID: "uid-" + a.host.name,
		Underlay: a.host.overlay.underlay}}
	for _, p := range append(parts, base) {
		body, err := json.Marshal(p.Value)
		must(t, err)
		digest := api.PartDigest(body)
		index.Parts[p.Name] = entry{digest, p.UID}
		must(t, os.WriteFile(filepath.Join(dir, "parts", digest+".json"), body, 0o600))
	}
	body, err := json.Marshal(index)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "index"), append([]byte(api.PartDigest(body)+"\n"), body...), 0o600))
}

func (a *agent) start() {
	t := a.host.fabric.t
	t.Helper()
	a.cmd = exec.Command(a.binary, a.flags("run")...)
	a.cmd.Stderr = a.log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, within(a.host.ns, a.cmd.Start))
}

func (a *agent) flags(verb string) []string {
	return []string{verb, "--config", filepath.Join(a.dir, "nodeagent.yaml"), "--state-dir", filepath.Join(a.dir, "state"), "--run-dir", filepath.Join(a.dir, "run")}
}

func (a *agent) kill() {
	if a.cmd != nil && a.cmd.ProcessState == nil {
		_ = a.cmd.Process.Kill()
		_ = a.cmd.Wait()
	}
}

// settled waits until this very agent has applied the cached HostSpec.
func (a *agent) settled() {
	a.host.fabric.t.Helper()
	soon(a.host.fabric.t, "the HostSpec is applied", func() bool {
		s, err := nodeagent.ReadStatus(filepath.Join(a.dir, "state"), filepath.Join(a.dir, "run"))
		networks := 0
		for name, p := range s.Host.Parts {
			switch {
			case strings.HasPrefix(name, "guest/"): // those of the test run in no QEMU
			case p.State != api.PartApplied:
				return false
			default:
				networks++
			}
		}
		return err == nil && s.PID == a.cmd.Process.Pid && networks > 1 && s.Host.Revision == a.revision
	})
}

// The agent is killed at any instant, with half of a change made, again and
// again: guests, whose taps another process holds, hear nothing of it.
func TestKilledUnderTraffic(t *testing.T) {
	f := newFabric(t, 2, false)
	h := f.hosts[0]
	agent := newAgent(t, h)
	n := red()
	f.reconcile(n, blue())
	a, b, c := f.plugIn(n, 1, 8), f.plugIn(n, 1, 10), f.plugIn(n, 2, 8)
	before := h.tenant(n).everything(t) + fmt.Sprint(h.entries(n))

	few, many := f.part(n, 1), f.part(n, 1)
	value := many.Value.(*api.NetworkPart)
	value.Peers = append(value.Peers, manyPeers(n, 300).Value.(*api.NetworkPart).Peers...)
	agent.cache(few, f.part(blue(), 1), a.part(), b.part())
	agent.start()
	agent.settled()

	stop := traffic(t, a.to(b), a.to(c), c.to(b))
	const kills = 40
	for i := range kills {
		agent.kill()
		network := few
		if i%2 == 0 {
			network = many
		}
		agent.cache(network, f.part(blue(), 1), a.part(), b.part())
		agent.start()
		time.Sleep(time.Duration(mrand.IntN(250)) * time.Millisecond)
	}
	agent.kill()
	agent.cache(few, f.part(blue(), 1), a.part(), b.part())
	agent.start()
	agent.settled()
	stop(100)
	after := h.tenant(n).everything(t) + fmt.Sprint(h.entries(n))
	unchanged(t, before, after)
	if text, err := os.ReadFile(agent.log.Name()); err != nil || strings.Contains(string(text), "repaired") {
		t.Errorf("an agent repaired what another had made: %v", err)
	}
}
