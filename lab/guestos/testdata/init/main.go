// Command init is all that runs in the Guests of the tests: it counts on the
// console and carries out the commands that it reads there.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func main() {
	if filepath.Base(os.Args[0]) == "shutdown" {
		shutdown()
		return
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run"} {
		_ = os.MkdirAll(dir, 0o755)
	}
	_ = unix.Mount("proc", "/proc", "proc", 0, "")
	_ = unix.Mount("sysfs", "/sys", "sysfs", 0, "")
	_ = unix.Mount("devtmpfs", "/dev", "devtmpfs", 0, "")
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	say := func(format string, args ...any) { fmt.Fprintf(console, "\r\n@"+format+"\r\n", args...) }
	order, _ := os.ReadFile("/modules/order")
	for name := range strings.FieldsSeq(string(order)) {
		if err := load(strings.TrimSuffix(name, ".ko")); err != nil {
			say("module %s: %v", name, err)
		}
	}
	time.Sleep(200 * time.Millisecond) // devices come up
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	say("up %s", strings.TrimSpace(string(boot)))
	go buttons(say)
	command, _ := os.ReadFile("/proc/cmdline")
	if strings.Contains(string(command), "qga") {
		go agent(say)
	}
	pause := 100 * time.Millisecond
	if strings.Contains(string(command), "calm") {
		pause = 10 * time.Second
	}
	go func() {
		for n := 1; ; n++ {
			say("tick %d", n)
			time.Sleep(pause)
		}
	}()
	in := bufio.NewScanner(console)
	for in.Scan() {
		words := strings.Fields(in.Text())
		if len(words) == 0 {
			continue
		}
		say("got %s", strings.Join(words, " "))
		time.Sleep(100 * time.Millisecond) // it is out before this may be over
		say("did %s: %s", strings.Join(words, " "), obey(words))
	}
	select {}
}

func load(module string) error {
	f, err := os.Open("/modules/" + module + ".ko")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return unix.FinitModule(int(f.Fd()), parameters(module), 0)
}

// parameters are a module's on the kernel's command line, as modprobe finds them.
func parameters(module string) string {
	line, _ := os.ReadFile("/proc/cmdline")
	var list []string
	for word := range strings.FieldsSeq(string(line)) {
		if p, ok := strings.CutPrefix(word, module+"."); ok {
			list = append(list, p)
		}
	}
	return strings.Join(list, " ")
}

func obey(words []string) string {
	words = append(words, "", "", "", "")
	switch words[0] {
	case "disk":
		size, err := os.ReadFile("/sys/block/" + byName(words[1]) + "/size")
		return strings.TrimSpace(string(size)) + text(err)
	case "read":
		raw, err := os.ReadFile("/dev/" + byName(words[1]))
		word, _, _ := strings.Cut(string(raw[:min(64, len(raw))]), "\x00")
		return word + text(err)
	case "write":
		f, err := os.OpenFile("/dev/"+byName(words[1]), os.O_WRONLY|unix.O_SYNC, 0)
		if err == nil {
			_, err = f.WriteString(words[2] + "\x00")
			_ = f.Close()
		}
		return "ok" + text(err)
	case "fill":
		f, err := os.OpenFile("/dev/"+byName(words[1]), os.O_WRONLY|unix.O_SYNC, 0)
		if err == nil {
			block := []byte(strings.Repeat("rackweft", 1<<17))
			for range 8 {
				if _, err = f.Write(block); err != nil {
					break
				}
			}
			_ = f.Close()
		}
		return "ok" + text(err)
	case "discard":
		return "ok" + text(discard(words[1]))
	case "pump":
		return "ok" + text(pump(words[1], words[2]))
	case "config":
		a, err := os.ReadFile("/sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/raw")
		b, err2 := os.ReadFile("/sys/firmware/qemu_fw_cfg/by_name/opt/org.flatcar-linux/config/raw")
		return fmt.Sprintf("%t %s", string(a) == string(b), a) + text(err) + text(err2)
	case "network":
		return "ok" + text(network(words[1]))
	case "serve":
		return "ok" + text(serve(words[1]))
	case "call":
		return call(words[1])
	case "reach":
		return reach(words[1])
	case "farewell":
		farewell.Store(&words[1])
		return "ok"
	case "fetch":
		return fetch(words[1])
	case "off":
		off()
	}
	return obeyHardware(words)
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return " (" + err.Error() + ")"
}

func byName(serial string) string {
	all, _ := filepath.Glob("/sys/block/*/serial")
	for _, path := range all {
		if raw, _ := os.ReadFile(path); strings.TrimSpace(string(raw)) == serial {
			return filepath.Base(filepath.Dir(path))
		}
	}
	all, _ = filepath.Glob("/sys/block/*/device/vpd_pg80") // SCSI's unit serial number
	for _, path := range all {
		if raw, _ := os.ReadFile(path); len(raw) > 4 && string(raw[4:]) == serial {
			return filepath.Base(filepath.Dir(filepath.Dir(path)))
		}
	}
	return "none"
}

// discard gives up a whole disk.
func discard(name string) error {
	f, err := os.OpenFile("/dev/"+byName(name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	span := [2]uint64{0, uint64(size)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span))); errno != 0 {
		return errno
	}
	return nil
}

// pump writes a number to one disk and then to another, on and on: at no moment
// are they further apart than one.
func pump(a, b string) error {
	var files []*os.File
	for _, name := range []string{a, b} {
		f, err := os.OpenFile("/dev/"+byName(name), os.O_WRONLY|unix.O_SYNC, 0)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	go func() {
		for n := 1; ; n++ {
			for _, f := range files {
				if _, err := f.WriteAt(fmt.Appendf(nil, "%012d\x00", n), 0); err != nil {
					return
				}
			}
		}
	}()
	return nil
}

// network gives eth0 an address, and its gateway.
func network(address string) error {
	own, err := netlink.LinkByName("lo") // by which it reaches itself
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(own); err != nil {
		return err
	}
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(address + "/32")
	if err != nil {
		return err
	}
	gateway := net.IPv4(169, 254, 1, 1)
	return errors.Join(netlink.LinkSetUp(l), netlink.AddrReplace(l, addr),
		netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: gateway, Mask: net.CIDRMask(32, 32)}}),
		netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gateway}))
}

// fetch does as Ignition does: it goes where its pointer says. With a token it
// shows that instead.
func fetch(token string) string {
	raw, err := os.ReadFile("/sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/raw")
	if err != nil {
		return err.Error()
	}
	var pointer struct {
		Ignition struct {
			Config struct {
				Replace struct {
					Source      string
					HTTPHeaders []struct{ Name, Value string }
				}
			}
		}
	}
	if err := json.Unmarshal(raw, &pointer); err != nil {
		return err.Error()
	}
	at := pointer.Ignition.Config.Replace
	req, err := http.NewRequest(http.MethodGet, at.Source, nil)
	if err != nil {
		return err.Error()
	}
	for _, h := range at.HTTPHeaders {
		req.Header.Set(h.Name, h.Value)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	client := http.Client{Timeout: 20 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s %s %s", resp.StatusCode, resp.Header.Get("Retry-After"), resp.Header.Get("Content-Type"), strings.TrimSpace(string(body))) + text(err)
}

func off() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func buttons(say func(string, ...any)) {
	all, _ := filepath.Glob("/dev/input/event*")
	for _, path := range all {
		go func() {
			f, err := os.Open(path)
			if err != nil {
				return
			}
			for buffer := make([]byte, 24); ; {
				if _, err := f.Read(buffer); err != nil {
					return
				}
				const evKey, keyPower = 1, 116
				if binary.LittleEndian.Uint16(buffer[16:]) == evKey && binary.LittleEndian.Uint16(buffer[18:]) == keyPower {
					say("power button%s", text(leave()))
					off()
				}
			}
		}()
	}
}

// agent runs qemu-ga, as long as this does.
func agent(say func(string, ...any)) {
	for ; ; time.Sleep(100 * time.Millisecond) {
		ports, _ := filepath.Glob("/dev/vport*")
		if len(ports) == 0 {
			say("no channel for an agent")
			continue
		}
		out, err := exec.Command("/usr/sbin/qemu-ga", "--method=virtio-serial", "--path="+ports[0], "--statedir=/run").CombinedOutput()
		say("qemu-ga has ended: %v %s", err, out)
	}
}

// shutdown is where qemu-ga looks for it.
func shutdown() {
	if console, err := os.OpenFile("/dev/console", os.O_RDWR, 0); err == nil {
		fmt.Fprintf(console, "\r\n@shutdown %s\r\n", strings.Join(os.Args[1:], " "))
		time.Sleep(100 * time.Millisecond) // it is out
	}
	off()
}
