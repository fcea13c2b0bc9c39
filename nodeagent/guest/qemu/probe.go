package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/internal/file"
	"github.com/rackweft/rackweft/internal/kvm"
)

// Time limits of a trial. A kernel needs two seconds under KVM and ten
// emulated; a boot sector takes no time.
const (
	kernelPatience   = 30 * time.Second
	emulatedPatience = 3 * time.Minute
	sectorPatience   = 10 * time.Second
)

// Verdict says which accelerator a host has, and why.
type Verdict struct {
	BootID      string      `json:"bootID"`
	QEMU        string      `json:"qemu"`
	Tried       string      `json:"tried"` // what was booted
	Accelerator Accelerator `json:"accelerator"`
	Reason      string      `json:"reason"`
	// Provisional: the kernel to try was not available.
	Provisional bool `json:"-"`
}

// TrialKernel is a kernel that boots wherever KVM works.
type TrialKernel struct {
	Name string // for messages
	Path string
	Done func() // called after the trial; may be nil
}

// ErrNoKernel means that a host has no kernel to try, and will not get one.
var ErrNoKernel = errors.New("no kernel to try")

// Version returns the version of a QEMU.
func Version(ctx context.Context, program string) (string, error) {
	out, err := command.Output(exec.CommandContext(ctx, program, "--version"))
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s is not installed: it is in Debian's package qemu-system-x86", program)
	}
	if err != nil {
		return "", fmt.Errorf("ask QEMU for its version: %w", err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}

// Probe finds out whether KVM works. On some hosts /dev/kvm opens, QEMU answers
// and a boot sector runs, but no kernel completes its boot. So a kernel from
// find is booted until it runs its init; a boot sector is used when there is
// none. The verdict is kept in dir for this boot of the host and this QEMU.
func Probe(ctx context.Context, program, dir string, find func(context.Context) (TrialKernel, error)) (Verdict, error) {
	v, err := describe(ctx, program)
	if err != nil {
		return Verdict{}, err
	}
	cache := filepath.Join(dir, "accelerator.json")
	if known, ok := cached(cache, v); ok {
		return known, nil
	}
	v.judge(ctx, program, find)
	if ctx.Err() != nil {
		return Verdict{}, context.Cause(ctx)
	}
	if v.Provisional {
		return v, nil
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return Verdict{}, err
	}
	if err := file.Replace(cache, raw, file.Options{}); err != nil {
		return v, fmt.Errorf("keep the verdict on KVM: %w", err)
	}
	return v, nil
}

func describe(ctx context.Context, program string) (Verdict, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Verdict{}, err
	}
	version, err := Version(ctx, program)
	return Verdict{BootID: strings.TrimSpace(string(id)), QEMU: version}, err
}

func cached(path string, wanted Verdict) (Verdict, bool) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return Verdict{}, false
	}
	var known Verdict
	if json.Unmarshal(raw, &known) != nil {
		return Verdict{}, false
	}
	return known, known.BootID == wanted.BootID && known.QEMU == wanted.QEMU && known.Tried != "" && (known.Accelerator == KVM || known.Accelerator == TCG)
}

// judge runs the trials that are possible and sets the result.
func (v *Verdict) judge(ctx context.Context, program string, find func(context.Context) (TrialKernel, error)) {
	device, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		v.Accelerator, v.Tried, v.Reason = TCG, "/dev/kvm", fmt.Sprintf("KVM is not available: %v (see the firmware's setting for virtualisation)", err)
		return
	}
	_ = device.Close()
	kernel, err := find(ctx)
	if err == nil && kernel.Done != nil {
		defer kernel.Done()
	}
	v.Provisional = err != nil && !errors.Is(err, ErrNoKernel)
	within := func(patience time.Duration, try func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return try(ctx)
	}
	v.conclude(kernel.Name, err, trials{
		kernel: func() error {
			return within(kernelPatience, func(ctx context.Context) error { return kvm.Kernel(ctx, program, string(KVM), kernel.Path) })
		},
		emulated: func() error {
			return within(emulatedPatience, func(ctx context.Context) error { return kvm.Kernel(ctx, program, string(TCG), kernel.Path) })
		},
		sector: func() error {
			return within(sectorPatience, func(ctx context.Context) error { return kvm.Sector(ctx, program, string(KVM)) })
		},
	})
}

// trials boot a kernel under KVM, the same emulated, and a boot sector under KVM.
type trials struct{ kernel, emulated, sector func() error }

// conclude derives the verdict. missing says why there is no kernel.
func (v *Verdict) conclude(kernel string, missing error, try trials) {
	if missing == nil {
		hung := try.kernel()
		if hung == nil {
			v.Accelerator, v.Tried, v.Reason = KVM, kernel, kernel+" starts its init under KVM"
			return
		}
		v.Accelerator, v.Tried, v.Reason = TCG, kernel, fmt.Sprintf("/dev/kvm opens, but %s does not boot under KVM: %v", kernel, hung)
		if try.sector() != nil {
			return
		}
		// A kernel that prints nothing on a serial port, for example, proves
		// nothing.
		err := try.emulated()
		if err == nil {
			return
		}
		missing = fmt.Errorf("%s does not boot with emulation either: %w", kernel, err)
	} else if err := try.sector(); err != nil {
		v.Accelerator, v.Tried, v.Reason = TCG, "a boot sector", fmt.Sprintf("/dev/kvm opens, but %v", err)
		return
	}
	v.Accelerator, v.Tried, v.Reason = KVM, "a boot sector", fmt.Sprintf("a boot sector runs under KVM; no kernel could be tried: %v", missing)
}
