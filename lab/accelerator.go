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
	"time"

	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/internal/kvm"
)

// Accelerator is how QEMU runs the machines' processors.
type Accelerator string

const (
	KVM Accelerator = "kvm"
	TCG Accelerator = "tcg" // emulation: works everywhere, ten times slower
)

// AcceleratorEnv overrides PickAccelerator: kvm or tcg.
const AcceleratorEnv = "RACKWEFT_LAB_ACCEL"

// probeDeadline is ample for KVM, which needs about two seconds.
const probeDeadline = 30 * time.Second

// verdict is the result of a probe, and what it is valid for.
type verdict struct {
	BootID       string      `json:"bootID"`
	QEMU         string      `json:"qemu"`
	KernelDigest string      `json:"kernelDigest"`
	Accelerator  Accelerator `json:"accelerator"`
	Reason       string      `json:"reason"`
}

// PickAccelerator picks KVM only if it works: on some machines /dev/kvm exists
// but a stock kernel hangs, so the lab's kernel is booted under it until it
// runs an init. The verdict is cached in cacheDir for this boot of this
// machine, this QEMU and this kernel, and the reason is logged.
func PickAccelerator(ctx context.Context, kernel, cacheDir string, log *slog.Logger) (Accelerator, error) {
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
	limited, cancel := context.WithTimeout(ctx, probeDeadline)
	defer cancel()
	if err := kvm.Kernel(limited, "qemu-system-x86_64", string(KVM), kernel); err != nil {
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

// kvmMissing returns what KVM lacks, or "".
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
