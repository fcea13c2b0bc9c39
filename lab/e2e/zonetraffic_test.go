package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"testing"
)

// firewall lets one pair of addresses through, and counts.
func (s *zoneSite) firewall(a, b netip.Addr) {
	s.t.Helper()
	s.in(s.core, "nft", "-f", s.write("fw.nft", fmt.Sprintf(`table inet fw {
 counter permitted {}
 counter denied {}
 chain forward {
  type filter hook forward priority filter; policy drop;
  ip saddr %[1]s ip daddr %[2]s counter name permitted accept
  ip saddr %[2]s ip daddr %[1]s counter name permitted accept
  counter name denied drop
 }
}
`, a, b)))
}

// permit lets more through, uncounted.
func (s *zoneSite) permit(a, b string) {
	s.t.Helper()
	for _, way := range [][2]string{{a, b}, {b, a}} {
		s.in(s.core, "nft", "insert", "rule", "inet", "fw", "forward", "ip", "saddr", way[0], "ip", "daddr", way[1], "accept")
	}
}

func (s *zoneSite) counted(counter string) int {
	s.t.Helper()
	out := s.in(s.core, "nft", "list", "counter", "inet", "fw", counter)
	m := regexp.MustCompile(`packets (\d+)`).FindStringSubmatch(out)
	if m == nil {
		s.t.Fatalf("no packets in %q", out)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

func pingOnce(from *deskHost, source, to netip.Addr) error {
	out, err := exec.Command("nsenter", "--net=/run/netns/"+from.ns, "ping", "-q", "-c1", "-W2", "-I", source.String(), to.String()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s does not reach %s: %w\n%s\nit has\n%s", from.name, to, err, out, from.routes())
	}
	return nil
}

// stream is packets that flow, 50 a second, until they are counted.
type stream struct {
	name string
	cmd  *exec.Cmd
	out  *bytes.Buffer
}

func startStream(t *testing.T, from *deskHost, source, to netip.Addr) *stream {
	t.Helper()
	f := &stream{name: fmt.Sprintf("%s to %s", from.name, to), out: new(bytes.Buffer)}
	f.cmd = exec.Command("nsenter", "--net=/run/netns/"+from.ns, "ping", "-n", "-q", "-i", "0.02", "-I", source.String(), to.String())
	f.cmd.Stdout, f.cmd.Stderr = f.out, f.out
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.cmd.Process.Kill(); _ = f.cmd.Wait() })
	return f
}

// lost ends it; the last packet may still have been on its way.
func (f *stream) lost(t *testing.T) {
	t.Helper()
	_ = f.cmd.Process.Signal(os.Interrupt)
	_ = f.cmd.Wait()
	m := regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`).FindStringSubmatch(f.out.String())
	if m == nil {
		t.Fatalf("ping %s says\n%s", f.name, f.out)
	}
	sent, _ := strconv.Atoi(m[1])
	received, _ := strconv.Atoi(m[2])
	t.Logf("%s: %d of %d packets lost", f.name, sent-received, sent)
	if sent-received > 1 {
		t.Errorf("%s: %d of %d packets are lost", f.name, sent-received, sent)
	}
}
