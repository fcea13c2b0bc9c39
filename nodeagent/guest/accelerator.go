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

// A kernel comes within fetchPatience and is no larger than maxKernel.
const (
	fetchPatience = 2 * time.Minute
	maxKernel     = 512 << 20
)

// accelerator is found out once, and again after the agent's start.
func (h *Handler) accelerator(ctx context.Context) (qemu.Verdict, error) {
	if h.o.Accelerator != "" {
		return qemu.Verdict{Accelerator: h.o.Accelerator, Reason: "nodeagent's --accelerator says so"}, nil
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

// trialKernel is the kernel that this host runs: of all kernels it is the one
// that boots here. A host that was booted over the network has no file of it, and
// asks bootd for it.
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
	remove := func() { _ = os.Remove(path) } // the next one is written over it
	if err := h.fetchKernel(ctx, path); err != nil {
		remove()
		return qemu.TrialKernel{}, fmt.Errorf("fetch the kernel that this host has booted: %w", err)
	}
	return qemu.TrialKernel{Name: fmt.Sprintf("the kernel that this host has booted (sha256:%.12s)", h.o.Kernel), Path: path, Done: remove}, nil
}

// kernelFile finds the file of a kernel below root, or "".
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
		return fmt.Errorf("the content has the digest %s, want %s", got, h.o.Kernel)
	}
	return nil
}
