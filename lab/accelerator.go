package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rackweft/rackweft/internal/command"
)

// Accelerator is what QEMU runs the machines' processors with.
type Accelerator string

const (
	KVM Accelerator = "kvm"
	TCG Accelerator = "tcg" // emulation: works everywhere, ten times slower
)

// AcceleratorEnv overrides PickAccelerator: kvm or tcg.
const AcceleratorEnv = "RACKWEFT_LAB_ACCEL"

// probeDeadline is ample for KVM, which gets there in about two seconds.
const probeDeadline = 30 * time.Second

// verdict is what a probe found, and for what it holds.
type verdict struct {
	BootID       string      `json:"bootID"`
	QEMU         string      `json:"qemu"`
	KernelDigest string      `json:"kernelDigest"`
	Accelerator  Accelerator `json:"accelerator"`
	Reason       string      `json:"reason"`
}

// PickAccelerator picks KVM only where it works: /dev/kvm can exist and still hang a stock kernel, so the
// kernel that is shipped is booted under it until it starts its init. The verdict is kept in cacheDir for
// this boot of this machine, this QEMU and this kernel, and the reason is logged.
func PickAccelerator(ctx context.Context, kernel, initrd, cacheDir string, log *slog.Logger) (Accelerator, error) {
	if forced := os.Getenv(AcceleratorEnv); forced != "" {
		if a := Accelerator(forced); a == KVM || a == TCG {
			log.Info("accelerator "+forced, "reason", AcceleratorEnv+" says so")
			return a, nil
		}
		return "", fmt.Errorf("%s=%q: use %s or %s", AcceleratorEnv, forced, KVM, TCG)
	}
	if reason := kvmMissing("/dev/kvm", "/sys/module"); reason != "" {
		log.Info("accelerator tcg: no KVM here, machines are emulated and slow", "reason", reason)
		return TCG, nil
	}
	wanted, err := describe(ctx, kernel)
	if err != nil {
		return "", fmt.Errorf("pick an accelerator: %w", err)
	}
	cache := filepath.Join(cacheDir, "accelerator.json")
	if known, ok := cached(cache, wanted); ok {
		log.Info("accelerator "+string(known.Accelerator), "reason", known.Reason+" (known from before)")
		return known.Accelerator, nil
	}
	wanted.Accelerator, wanted.Reason = KVM, "the kernel starts its init under KVM"
	if err := probe(ctx, KVM, kernel, initrd); err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("pick an accelerator: %w", ctx.Err())
		}
		wanted.Accelerator, wanted.Reason = TCG, "KVM is there, but "+err.Error()
	}
	log.Info("accelerator "+string(wanted.Accelerator), "reason", wanted.Reason)
	if err := writeVerdict(cache, wanted); err != nil {
		return "", fmt.Errorf("pick an accelerator: %w", err)
	}
	return wanted.Accelerator, nil
}

// kvmMissing says what KVM lacks, or "".
func kvmMissing(device, modules string) string {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err.Error()
	}
	_ = f.Close()
	for _, name := range []string{"kvm_intel", "kvm_amd"} {
		if _, err := os.Stat(filepath.Join(modules, name)); err == nil {
			return ""
		}
	}
	return device + " has neither kvm_intel nor kvm_amd behind it"
}

func describe(ctx context.Context, kernel string) (verdict, error) {
	id, err := bootID()
	if err != nil {
		return verdict{}, err
	}
	version, err := command.Output(exec.CommandContext(ctx, "qemu-system-x86_64", "--version"))
	if err != nil {
		return verdict{}, fmt.Errorf("ask QEMU for its version: %w", err)
	}
	first, _, _ := strings.Cut(string(version), "\n")
	f, err := os.Open(kernel)
	if err != nil {
		return verdict{}, err
	}
	defer func() { _ = f.Close() }()
	digest := sha256.New()
	if _, err := io.Copy(digest, f); err != nil {
		return verdict{}, err
	}
	return verdict{BootID: id, QEMU: first, KernelDigest: hex.EncodeToString(digest.Sum(nil))}, nil
}

func cached(path string, wanted verdict) (verdict, bool) {
	body, err := os.ReadFile(path)
	if err != nil {
		return verdict{}, false
	}
	var known verdict
	if json.Unmarshal(body, &known) != nil {
		return verdict{}, false
	}
	wanted.Accelerator, wanted.Reason = known.Accelerator, known.Reason
	return known, known == wanted && (known.Accelerator == KVM || known.Accelerator == TCG)
}

func writeVerdict(path string, v verdict) error {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(body, '\n'), 0o644)
}

// probe boots the kernel until it says that it starts its init (init/main.c, run_init_process).
func probe(ctx context.Context, accelerator Accelerator, kernel, initrd string) error {
	ctx, cancel := context.WithTimeout(ctx, probeDeadline)
	defer cancel()
	cpu := "host"
	if accelerator == TCG {
		cpu = emulatedCPU
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", string(accelerator), "-cpu", cpu, "-m", "1024",
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 loglevel=7 panic=-1", "-serial", "stdio")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		return err
	}
	reached := sawInit(output)
	cancel() // kills QEMU, whatever it is at
	err = cmd.Wait()
	if reached {
		return nil
	}
	if complaint.Len() > 0 {
		return fmt.Errorf("QEMU says: %s", strings.TrimSpace(complaint.String()))
	}
	return fmt.Errorf("the kernel did not start its init within %s (%w)", probeDeadline, err)
}

func sawInit(console io.Reader) bool {
	var seen strings.Builder
	buffer := make([]byte, 4096)
	for {
		n, err := console.Read(buffer)
		seen.Write(buffer[:n])
		if strings.Contains(seen.String(), "as init process") {
			return true
		}
		if err != nil || seen.Len() > 1<<20 {
			return false
		}
	}
}
