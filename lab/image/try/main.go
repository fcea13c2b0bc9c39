// Command try boots the lab's netboot image in QEMU and waits until a unit that
// only Ignition can have put there says READY. It owns nothing but the test: a
// rootfs and Ignition server on loopback, one disk, and one QEMU, all in a
// network namespace of their own. It boots twice, so that the second boot shows
// whether the data disk keeps its content, and prints how long each stage took.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const bootMAC = "52:54:00:01:07:00"

type options struct {
	image, console, cpu, appendArgs, rtc, command string
	smp, memory, boots                            int
	faults, verbose                               bool
	timeout                                       time.Duration
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "try:", err)
		os.Exit(1)
	}
}

func run() error {
	var o options
	flag.StringVar(&o.image, "image", "", "directory that lab/image/build printed")
	flag.StringVar(&o.console, "console", "", "file for the console log (default: in the temporary directory, lost)")
	// With ERMS the kernel clears and copies memory by "rep stosb", which TCG
	// emulates byte by byte: that takes a third of a boot.
	flag.StringVar(&o.cpu, "cpu", "max,la57=off,erms=off,fsrm=off", "QEMU's -cpu")
	// Without tsc=reliable the clock of an emulated machine is the HPET, with
	// one trap per reading.
	flag.StringVar(&o.appendArgs, "append", "tsc=reliable mitigations=off", "more kernel arguments")
	flag.StringVar(&o.rtc, "rtc", "1980-01-01T00:00:00", "the machine's clock at power-on")
	flag.StringVar(&o.command, "run", "", "shell command for the machine to run when it is READY; its output goes to the console")
	flag.IntVar(&o.smp, "smp", 1, "virtual CPUs")
	flag.IntVar(&o.memory, "memory", 1024, "memory in MiB")
	flag.IntVar(&o.boots, "boots", 2, "boots of the same disk")
	flag.BoolVar(&o.faults, "faults", false, "let the server refuse, cut off and corrupt before it behaves")
	flag.BoolVar(&o.verbose, "v", false, "copy the console to standard error")
	flag.DurationVar(&o.timeout, "timeout", 5*time.Minute, "limit for one boot")
	flag.Parse()
	if o.image == "" {
		return errors.New("name the image: -image $(lab/image/build)")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Getenv("RACKWEFT_TRY_NETNS") == "" {
		return isolate(ctx)
	}
	return try(ctx, o)
}

// isolate runs this program again in a network namespace that has only the
// loopback, so that QEMU's user network leads nowhere else.
func isolate(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--net", "--", "sh", "-c",
		`ip link set lo up && exec "$0" "$@"`, os.Args[0]}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), "RACKWEFT_TRY_NETNS=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	return cmd.Run()
}

func try(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "rackweft-try-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	disk := filepath.Join(dir, "disk")
	if err := makeDisk(disk); err != nil {
		return err
	}
	if o.console == "" {
		o.console = filepath.Join(dir, "console")
	}
	log, err := os.Create(o.console)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	for n := range o.boots {
		if err := boot(ctx, o, disk, n+1, log); err != nil {
			return fmt.Errorf("boot %d: %w (console: %s)", n+1, err, o.console)
		}
	}
	return nil
}

func makeDisk(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(1<<30), f.Close())
}

func boot(ctx context.Context, o options, disk string, n int, log io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	server, err := serve(o.image, n, o.faults, o.command)
	if err != nil {
		return fmt.Errorf("start the servers: %w", err)
	}
	defer func() { _ = server.Close() }()
	digest, err := fileDigest(filepath.Join(o.image, "rootfs.squashfs"))
	if err != nil {
		return err
	}
	cmdline := strings.Join([]string{
		"rackweft.rootfs=" + server.URL("/blobs/sha256/"+digest), "rackweft.rootfs.sha256=" + digest,
		"ignition.firstboot", "ignition.platform.id=metal", "ignition.config.url=" + server.URL("/ignition/pointer/x"),
		"BOOTIF=01-" + strings.ReplaceAll(bootMAC, ":", "-"), "systemd.firstboot=off", "console=ttyS0",
		"systemd.journald.forward_to_console=1", o.appendArgs,
	}, " ")
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-nodefaults", "-nographic", "-no-reboot",
		"-machine", "q35,accel=tcg", "-cpu", o.cpu, "-smp", fmt.Sprint(o.smp), "-m", fmt.Sprint(o.memory),
		"-rtc", "base="+o.rtc, "-serial", "stdio", "-device", "virtio-rng-pci",
		"-netdev", "user,id=boot,net=198.18.0.0/24,host=198.18.0.2,dhcpstart=198.18.0.15",
		"-device", "virtio-net-pci,netdev=boot,mac="+bootMAC+",romfile=",
		"-netdev", "hubport,id=prod,hubid=1",
		"-device", "virtio-net-pci,netdev=prod,mac=52:54:00:01:07:01,romfile=",
		"-drive", "if=none,id=data,format=raw,file="+disk, "-device", "virtio-blk-pci,drive=data",
		"-kernel", filepath.Join(o.image, "vmlinuz"), "-initrd", filepath.Join(o.image, "initrd"),
		"-append", cmdline)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	output, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { // the console shows the result
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if o.verbose {
		log = io.MultiWriter(log, os.Stderr)
	}
	return follow(output, log, server, watch{start: start, pid: cmd.Process.Pid}, n)
}

// watch measures how long a machine runs, and how much processor time its
// emulation took, which does not depend on the load of the computer.
type watch struct {
	start time.Time
	pid   int
}

func (w watch) elapsed() float64 { return time.Since(w.start).Seconds() }

// processor returns user and system time of QEMU, in seconds; zero when it is
// gone.
func (w watch) processor() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", w.pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(after)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	const ticksPerSecond = 100 // USER_HZ, the same on every Linux we run on
	return (user + system) / ticksPerSecond
}

// follow reads the console until every milestone was seen.
func follow(output io.Reader, log io.Writer, server *server, w watch, n int) error {
	type milestone struct {
		name    string
		pattern *regexp.Regexp
	}
	pending := []milestone{
		{"kernel", regexp.MustCompile(`Linux version`)},
		{"initrd", regexp.MustCompile(`Running in initrd`)},
		{"rootfs fetch", regexp.MustCompile(`rackweft: rootfs: fetching`)},
		{"root mounted", regexp.MustCompile(`rackweft: rootfs: mounted`)},
		{"real root", regexp.MustCompile(`Switching root`)},
		{"READY", regexp.MustCompile(fmt.Sprintf(`READY boot=%d boots-on-disk=%d host=r1u07 user=1 other-nic-down-or-bare=1 fetched=1`, n, n))},
		{"login", regexp.MustCompile(`r1u07 login:`)},
	}
	if server.command != "" {
		pending = append(pending, milestone{"command done", regexp.MustCompile(`^RUN done`)})
	}
	failed := regexp.MustCompile(`rackweft: the boot failed|Kernel panic|READY boot=.*|emergency mode`)
	lines := bufio.NewReader(output)
	var line []byte
	for len(pending) > 0 {
		b, err := lines.ReadByte()
		if err != nil {
			return fmt.Errorf("the console ended before %q", pending[0].name)
		}
		// A login prompt does not end in a newline.
		line = append(line, b)
		if b != '\n' && b != ':' {
			continue
		}
		text, seen := string(line), false
		for i, m := range pending {
			if m.pattern.MatchString(text) {
				fmt.Printf("boot %d: %-14s %6.1f s  %6.1f s of processor\n", n, m.name, w.elapsed(), w.processor())
				pending = append(pending[:i], pending[i+1:]...)
				seen = true
				break
			}
		}
		if b != '\n' {
			continue
		}
		if _, err := fmt.Fprintf(log, "%7.2f %s", w.elapsed(), text); err != nil {
			return fmt.Errorf("write the console log: %w", err)
		}
		line = line[:0]
		if !seen && failed.MatchString(text) && strings.Contains(text, "READY") {
			return fmt.Errorf("not what the config asked for: %s", strings.TrimSpace(text))
		}
		if !seen && failed.MatchString(text) {
			return fmt.Errorf("%s", strings.TrimSpace(text))
		}
	}
	server.report(n, w.start)
	return nil
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("digest %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// loopbackPort listens on a free loopback port; QEMU's user network shows it to
// the machine as 198.18.0.2.
func loopbackPort() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
