package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// maxKernel bounds the size of a kernel that is fetched, fetchPatience the time
// that it may take.
const (
	fetchPatience = 2 * time.Minute
	maxKernel     = 512 << 20
)

// accelerator tries KVM once per run of the agent and remembers the verdict.
func (h *Handler) accelerator(ctx context.Context) (qemu.Verdict, error) {
	if h.o.Accelerator != "" {
		return qemu.Verdict{Accelerator: h.o.Accelerator, Reason: "set by nodeagent's --accelerator"}, nil
	}
	h.probing.Lock() // for some seconds, or minutes where KVM hangs
	defer h.probing.Unlock()
	if h.used != nil {
		return *h.used, nil
	}
	if err := os.MkdirAll(h.o.RunDir, 0o700); err != nil {
		return qemu.Verdict{}, err
	}
	v, err := qemu.Probe(ctx, h.o.Program, h.o.RunDir, h.trialKernel)
	if err != nil {
		return v, err
	}
	h.o.Log.Info("accelerator", "accelerator", v.Accelerator, "reason", v.Reason)
	if !v.Provisional {
		h.used = &v
	}
	return v, nil
}

// trialKernel returns the kernel that this host runs, because that one is known
// to boot here. A host that was booted over the network has no file of it and
// fetches it from bootd.
func (h *Handler) trialKernel(ctx context.Context) (qemu.TrialKernel, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return qemu.TrialKernel{}, fmt.Errorf("ask which kernel runs: %w", err)
	}
	if path := kernelFile("/", unix.ByteSliceToString(name.Release[:])); path != "" {
		return qemu.TrialKernel{Name: path, Path: path}, nil
	}
	if h.o.Kernel == "" || h.o.Fetch == nil {
		return qemu.TrialKernel{}, qemu.ErrNoKernel
	}
	path := filepath.Join(h.o.RunDir, "kernel.tmp")
	remove := func() { _ = os.Remove(path) } // the next fetch overwrites it
	if err := h.fetchKernel(ctx, path); err != nil {
		remove()
		return qemu.TrialKernel{}, fmt.Errorf("fetch the kernel that this host booted: %w", err)
	}
	return qemu.TrialKernel{Name: fmt.Sprintf("the kernel that this host booted (sha256:%.12s)", h.o.Kernel), Path: path, Done: remove}, nil
}

// kernelFile returns the path of a kernel below root, or "" when there is none.
func kernelFile(root, release string) string {
	for _, path := range []string{
		"boot/vmlinuz-" + release,                 // Debian, Ubuntu
		"usr/lib/modules/" + release + "/vmlinuz", // Fedora CoreOS
	} {
		path = filepath.Join(root, path)
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		info, err := f.Stat()
		_ = f.Close()
		if err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

func (h *Handler) fetchKernel(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, fetchPatience)
	defer cancel()
	content, err := h.o.Fetch(ctx, h.o.Kernel)
	if err != nil {
		return err
	}
	defer func() { _ = content.Close() }()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), io.LimitReader(content, maxKernel))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if got := api.SHA256(hex.EncodeToString(sum.Sum(nil))); got != h.o.Kernel {
		return fmt.Errorf("invalid content: got digest %s, want %s", got, h.o.Kernel)
	}
	return nil
}
