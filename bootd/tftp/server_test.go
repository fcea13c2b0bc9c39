package tftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/internal/logtest"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// bench is a server on a free port of loopback and all that it told.
type bench struct {
	*Server
	log *logtest.Buffer

	mu        sync.Mutex
	transfers []Transfer
	seen      chan struct{} // one value per transfer
}

func start(t *testing.T, cfg Config) *bench {
	t.Helper()
	b := &bench{log: new(logtest.Buffer), seen: make(chan struct{}, 1000)}
	cfg.Listen = netip.MustParseAddrPort("127.0.0.1:0")
	cfg.Log = slog.New(slog.NewTextHandler(b.log, nil))
	cfg.Observe = func(tr Transfer) {
		b.mu.Lock()
		b.transfers = append(b.transfers, tr)
		b.mu.Unlock()
		b.seen <- struct{}{}
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.Server = s
	waittest.Serve(t, s.Run, s.Ready())
	return b
}

func (b *bench) transfer(t *testing.T, i int) Transfer {
	t.Helper()
	select {
	case <-b.seen:
	case <-time.After(20 * time.Second):
		t.Fatal("no transfer was observed")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.transfers[i]
}

func (b *bench) count(outcome string) float64 {
	var m dto.Metric
	if err := b.metrics.transfers.WithLabelValues(outcome).Write(&m); err != nil {
		panic(err)
	}
	return m.GetCounter().GetValue()
}

// until waits for what the server does after the client has its answer.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	waittest.Until(t, 20*time.Second, what, ok)
}

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

func client(t *testing.T, name string, args ...string) ([]byte, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return command.Output(exec.CommandContext(ctx, path, args...))
}

func TestForeignClients(t *testing.T) {
	files := fstest.MapFS{}
	for _, n := range []int{0, 1, 511, 512, 513, 1468, 2936, 850_528} {
		files["boot/"+strconv.Itoa(n)] = &fstest.MapFile{Data: content(n)}
	}
	b := start(t, Config{Source: FS(files)})
	port := strconv.Itoa(int(b.Addr().Port()))
	served := 0
	for name, f := range files {
		out := filepath.Join(t.TempDir(), "out")
		gets := map[string]func() ([]byte, error){
			"tftp-hpa": func() ([]byte, error) {
				return client(t, "tftp", "-m", "binary", "127.0.0.1", port, "-c", "get", "/"+name, out)
			},
			"curl 512": func() ([]byte, error) {
				return client(t, "curl", "-sS", "--tftp-blksize", "512", "-o", out, "tftp://127.0.0.1:"+port+"/"+name)
			},
			"curl 1468": func() ([]byte, error) {
				return client(t, "curl", "-sS", "--tftp-blksize", "1468", "-o", out, "tftp://127.0.0.1:"+port+"/"+name)
			},
			"curl without options": func() ([]byte, error) {
				return client(t, "curl", "-sS", "--tftp-no-options", "-o", out, "tftp://127.0.0.1:"+port+"/"+name)
			},
		}
		for by, get := range gets {
			t.Run(by+" "+name, func(t *testing.T) {
				if err := os.WriteFile(out, nil, 0o600); err != nil { // curl makes none for an empty file
					t.Fatal(err)
				}
				if msg, err := get(); err != nil {
					t.Fatalf("%v: %s", err, msg)
				}
				got, err := os.ReadFile(out)
				if err != nil || !bytes.Equal(got, f.Data) {
					t.Fatalf("got %d bytes of %d, %v", len(got), len(f.Data), err)
				}
				tr := b.transfer(t, served)
				served++
				if tr.File != name || tr.Bytes != int64(len(f.Data)) || tr.Err != nil || tr.Peer.Addr() != netip.MustParseAddr("127.0.0.1") {
					t.Fatalf("observed %+v", tr)
				}
			})
		}
	}
}

func TestMissingFileIsLogged(t *testing.T) {
	b := start(t, Config{Source: FS(fstest.MapFS{"dir/file": {}})})
	port := strconv.Itoa(int(b.Addr().Port()))
	for _, name := range []string{"nothing.efi", "dir", "../etc/passwd", "a/../../b"} {
		// --path-as-is: curl must not tidy up the name itself
		if msg, err := client(t, "curl", "-sS", "--path-as-is", "tftp://127.0.0.1:"+port+"//"+name); err == nil {
			t.Errorf("%s was served: %s", name, msg)
		}
	}
	if b.count("missing") != 2 || b.count("bad_name") != 2 {
		t.Errorf("missing %v, bad names %v", b.count("missing"), b.count("bad_name"))
	}
	for _, want := range []string{
		`tftp: file \"nothing.efi\" asked by 127.0.0.1: no such boot file`,
		`asked by 127.0.0.1: the name holds \"..\"`,
	} {
		if !strings.Contains(b.log.String(), want) {
			t.Errorf("the log does not hold %s:\n%s", want, b.log)
		}
	}
}

func TestWriteIsRefused(t *testing.T) {
	b := start(t, Config{Source: FS(fstest.MapFS{})})
	local := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(local, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if msg, err := client(t, "curl", "-sS", "-T", local, "tftp://"+b.Addr().String()+"/x"); err == nil {
		t.Errorf("a file was taken: %s", msg)
	}
	until(t, "the refusal is counted", func() bool { return b.count("write") == 1 })
}

// raw is a client made of bytes.
type raw struct {
	t    *testing.T
	conn *net.UDPConn
	to   netip.AddrPort // the server's port of this transfer, after its first packet
}

func dial(t *testing.T, to netip.AddrPort) *raw {
	t.Helper()
	return dialFrom(t, "127.0.0.1", to)
}

func dialFrom(t *testing.T, address string, to netip.AddrPort) *raw {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &raw{t: t, conn: conn, to: to}
}

func (r *raw) send(op uint16, rest string) {
	r.t.Helper()
	if _, err := r.conn.WriteToUDPAddrPort(append(binary.BigEndian.AppendUint16(nil, op), rest...), r.to); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) receive() (op uint16, rest []byte) {
	r.t.Helper()
	buf := make([]byte, 65536)
	if err := r.conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		r.t.Fatal(err)
	}
	n, from, err := r.conn.ReadFromUDPAddrPort(buf)
	if err != nil || n < 4 {
		r.t.Fatalf("%d bytes, %v", n, err)
	}
	r.to = from
	return binary.BigEndian.Uint16(buf), buf[2:n]
}

// TestFirmwareProbe does what OVMF does: ask for the size, abort, then load.
func TestFirmwareProbe(t *testing.T) {
	file := content(3000)
	b := start(t, Config{Source: FS(fstest.MapFS{"snponly.efi": {Data: file}})})
	probe := dial(t, b.Addr())
	probe.send(1, "snponly.efi\x00octet\x00tsize\x000\x00blksize\x001468\x00windowsize\x004\x00")
	op, rest := probe.receive()
	if op != 6 || !bytes.Contains(rest, []byte("tsize\x003000\x00")) || !bytes.Contains(rest, []byte("blksize\x001468\x00")) {
		t.Fatalf("OACK: op %d, %q", op, rest)
	}
	if bytes.Contains(rest, []byte("windowsize")) {
		t.Fatalf("windowsize was acknowledged: %q", rest)
	}
	probe.send(5, "\x00\x08User aborted the transfer\x00")
	until(t, "the probe is seen", func() bool { return b.count("probe") == 1 })

	load := dial(t, b.Addr())
	load.send(1, "snponly.efi\x00octet\x00blksize\x001468\x00windowsize\x004\x00")
	if op, rest := load.receive(); op != 6 || string(rest) != "blksize\x001468\x00" {
		t.Fatalf("OACK: op %d, %q", op, rest)
	}
	load.send(4, "\x00\x00")
	var got []byte
	for {
		op, rest := load.receive()
		if op != 3 {
			t.Fatalf("op %d, %q", op, rest)
		}
		got = append(got, rest[2:]...)
		load.send(4, string(rest[:2]))
		if len(rest)-2 < 1468 {
			break
		}
	}
	if !bytes.Equal(got, file) {
		t.Fatalf("got %d bytes", len(got))
	}
	if tr := b.transfer(t, 0); tr.Err != nil || tr.Bytes != 3000 {
		t.Fatalf("observed %+v", tr)
	}
	if b.count("failed") != 0 {
		t.Errorf("a probe was counted as a failure:\n%s", b.log)
	}
}

func TestBlockSizeIsBounded(t *testing.T) {
	b := start(t, Config{Source: FS(fstest.MapFS{"f": {Data: content(10)}})})
	c := dial(t, b.Addr())
	c.send(1, "f\x00octet\x00blksize\x0065464\x00")
	if op, rest := c.receive(); op != 6 || string(rest) != "blksize\x001468\x00" {
		t.Fatalf("op %d, %q", op, rest)
	}
	c.send(5, "\x00\x08\x00")
}

func TestAbortInMidTransferIsAFailure(t *testing.T) {
	b := start(t, Config{Source: FS(fstest.MapFS{"f": {Data: content(5000)}})})
	c := dial(t, b.Addr())
	c.send(1, "f\x00octet\x00")
	if op, _ := c.receive(); op != 3 {
		t.Fatalf("op %d", op)
	}
	c.send(4, "\x00\x01")
	if op, _ := c.receive(); op != 3 {
		t.Fatalf("op %d", op)
	}
	c.send(5, "\x00\x03disk full\x00")
	if tr := b.transfer(t, 0); tr.Err == nil || !strings.Contains(tr.Err.Error(), "disk full") || tr.Bytes == 5000 {
		t.Fatalf("observed %+v", tr)
	}
	if b.count("failed") != 1 {
		t.Errorf("failed = %v", b.count("failed"))
	}
}

func TestLostBlockIsRepeatedAndDuplicateACKIsNot(t *testing.T) {
	b := start(t, Config{Source: FS(fstest.MapFS{"f": {Data: content(600)}}), Timeout: 300 * time.Millisecond})
	c := dial(t, b.Addr())
	c.send(1, "f\x00octet\x00")
	_, first := c.receive()
	_, again := c.receive() // after no ACK
	if !bytes.Equal(first, again) {
		t.Fatal("the repeated block differs")
	}
	c.send(4, "\x00\x01")
	c.send(4, "\x00\x01")
	_, second := c.receive()
	c.send(4, "\x00\x02")
	if tr := b.transfer(t, 0); tr.Err != nil || len(second) != 2+88 {
		t.Fatalf("observed %+v", tr)
	}
}

func TestSilentClientFailsAndStopEndsTransfers(t *testing.T) {
	b := start(t, Config{Source: FS(fstest.MapFS{"f": {Data: content(5000)}}), Timeout: 50 * time.Millisecond, Retries: 2})
	c := dial(t, b.Addr())
	c.send(1, "f\x00octet\x00")
	if tr := b.transfer(t, 0); tr.Err == nil {
		t.Fatalf("observed %+v", tr)
	}
}

func TestTooManyRequestsOfOnePeer(t *testing.T) {
	b := start(t, Config{Source: FS(fstest.MapFS{"f": {Data: content(5000)}}), PerPeer: 2, Timeout: 200 * time.Millisecond, Retries: 2})
	for i, want := range []uint16{3, 3, 5} {
		c := dial(t, b.Addr())
		c.send(1, "f\x00octet\x00")
		if op, rest := c.receive(); op != want {
			t.Fatalf("request %d: op %d, %q", i, op, rest)
		}
	}
	if b.count("busy") != 1 {
		t.Errorf("busy = %v", b.count("busy"))
	}
}

// TestSilentCrowd fills the transfers with clients that answer nothing: a registered machine is served.
func TestSilentCrowd(t *testing.T) {
	const machine = "127.9.9.9"
	b := start(t, Config{Source: FS(fstest.MapFS{"f": {Data: content(100)}}), Parallel: 8, Timeout: 4 * time.Second, Retries: 1,
		Known: func(a netip.Addr) bool { return a == netip.MustParseAddr(machine) }})
	for n := range 100 {
		dialFrom(t, fmt.Sprintf("127.1.%d.1", n), b.Addr()).send(1, "f\x00octet\x00")
	}
	until(t, "strangers have all that they may", func() bool { return len(b.strangers) == cap(b.strangers) })
	c := dialFrom(t, machine, b.Addr())
	c.send(1, "f\x00octet\x00")
	if op, rest := c.receive(); op != 3 || len(rest) != 2+100 {
		t.Errorf("the registered machine is answered op %d, %d bytes", op, len(rest))
	}
}

func TestBusyPortIsExplained(t *testing.T) {
	b := start(t, Config{Source: FS(fstest.MapFS{})})
	second, err := New(Config{Source: FS(fstest.MapFS{}), Listen: b.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another TFTP server") {
		t.Fatalf("Run: %v", err)
	}
}

func TestMetricsLeaveTheRegistry(t *testing.T) {
	reg := prometheus.NewRegistry()
	for range 2 {
		s, err := New(Config{Source: FS(fstest.MapFS{}), Listen: netip.MustParseAddrPort("127.0.0.1:0"), Metrics: reg})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Run(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzCleanName(f *testing.F) {
	for _, s := range []string{"/snponly.efi", `\EFI\boot.efi`, "../x", "a/./b//c", "undionly.kpxe\xff", "\x00", "", "/", "grub/x86_64-efi/../../.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, asked string) {
		name, err := cleanName(asked)
		if err != nil {
			return
		}
		if !fs.ValidPath(name) || name == "." || strings.ContainsAny(name, "\\\x00\n\r") || len(name) > 255 {
			t.Fatalf("%q became %q", asked, name)
		}
		if again, err := cleanName(name); err != nil || again != name {
			t.Fatalf("%q became %q, and that %q, %v", asked, name, again, err)
		}
		if _, err := FS(fstest.MapFS{})(t.Context(), netip.AddrPort{}, name); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%q: %v", name, err)
		}
	})
}
