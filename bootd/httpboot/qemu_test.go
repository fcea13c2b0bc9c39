package httpboot

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/internal/wait/waittest"
)

const ipxeKernel = "/boot/ipxe.lkrn" // Debian's package ipxe

// TestRealIPXE boots iPXE in QEMU: held, without an answer, with a kernel that is missing, then let go.
func TestRealIPXE(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	if _, err := os.Stat(ipxeKernel); err != nil {
		t.Skipf("iPXE is not installed: %v", err)
	}
	d := &fakeDecider{}
	d.set(Script{}, &Hold{Reason: "Machine r1u07 is not registered; apply it || 1", RetryAfter: 2 * time.Second})
	b := start(t, Config{Decider: d})
	console := boot(t, qemu, b.Addr().Port())

	console.wait(t, "rackweft: 52-54-00-01-07-00 asks what to boot")
	console.wait(t, "rackweft: held: Machine r1u07 is not registered; apply it '||' 1")
	console.wait(t, "rackweft: next try in 2 s")
	c := d.last()
	if c.MAC.String() != "52:54:00:01:07:00" || c.UUID.String() != "0c5f4d4e-0107-4000-8000-525400010700" {
		t.Errorf("client: MAC %s, UUID %s", c.MAC, c.UUID)
	}
	for key, want := range map[string]string{
		"arch": "i386", "platform": "pcbios", "serial": "S/N:7 8", "product": "Model X", "manufacturer": "Lab Co", "asset": "",
	} {
		if got := c.Query.Get(key); got != want {
			t.Errorf("%s = %q, want %q", key, got, want)
		}
	}

	d.set(Script{}, fmt.Errorf("the store is away"))
	console.wait(t, "rackweft: bootd cannot decide now; its log says why")
	d.set(Script{}, http.ErrAbortHandler) // as when bootd is killed
	console.wait(t, "no script for 52-54-00-01-07-00: bootd is away, or answers with an error. Next try in 5 s.")

	// What is no kernel fails in "kernel", and the machine starts over.
	d.set(Script{Title: "second script", Kernel: "/blobs/sha256/" + strings.Repeat("0", 64)}, nil)
	console.wait(t, "rackweft: second script")
	console.wait(t, "rackweft: the boot has failed; starting over in 5 s")

	// iPXE itself is a Linux kernel image: booting it shows that kernel, arguments and boot work.
	kernel, err := os.ReadFile(ipxeKernel)
	if err != nil {
		t.Fatal(err)
	}
	digest := b.assets.put(kernel)
	d.set(Script{Title: "third script", Kernel: "/blobs/sha256/" + digest[7:], Initrd: []Initrd{{URL: "/boot.ipxe"}},
		Args: []string{"quiet"}}, nil)
	console.wait(t, "rackweft: third script")
	console.wait(t, "iPXE initialising devices") // again
	console.waitTimes(t, "asks what to boot", 3)
}

// console is what a machine has printed.
type console struct {
	mu   sync.Mutex
	text bytes.Buffer
	seen int
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

// wait waits until text comes after what was waited for before.
func (c *console) wait(t *testing.T, text string) {
	t.Helper()
	c.poll(t, text, func(all string) bool {
		i := strings.Index(all[c.seen:], text)
		if i >= 0 {
			c.seen += i + len(text)
		}
		return i >= 0
	})
}

func (c *console) waitTimes(t *testing.T, text string, n int) {
	t.Helper()
	c.poll(t, text, func(all string) bool { return strings.Count(all, text) >= n })
}

func (c *console) poll(t *testing.T, what string, ok func(all string) bool) {
	t.Helper()
	came := waittest.Soon(time.Minute, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		// SeaBIOS's serial console moves the cursor instead of printing spaces and line ends.
		return ok(plain(c.text.String()))
	})
	if !came {
		t.Fatalf("%q never came; the console:\n%s", what, plain(c.text.String()))
	}
}

// plain drops escape sequences and line ends, at which the console breaks long lines.
func plain(s string) string {
	var b strings.Builder
	escape := false
	for _, r := range s {
		switch {
		case r == 0x1b:
			escape = true
		case escape:
			escape = r == '[' || r == ';' || (r >= '0' && r <= '9') || r == '?' || r == '='
		case r != '\r' && r != '\n':
			b.WriteRune(r)
		}
	}
	return b.String()
}

func boot(t *testing.T, qemu string, port uint16) *console {
	t.Helper()
	out := new(console)
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, qemu, "-machine", "pc,accel=tcg", "-m", "256", "-nographic", "-no-user-config", "-monitor", "none",
		"-uuid", "0c5f4d4e-0107-4000-8000-525400010700",
		"-smbios", "type=1,manufacturer=Lab Co,product=Model X,serial=S/N:7 8",
		"-kernel", ipxeKernel,
		"-netdev", fmt.Sprintf("user,id=n0,net=198.18.2.0/24,host=198.18.2.2,bootfile=http://198.18.2.2:%d/boot.ipxe", port),
		"-device", "virtio-net-pci,netdev=n0,mac=52:54:00:01:07:00,romfile=")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed
	})
	return out
}
