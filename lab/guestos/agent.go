package guestos

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/rackweft/rackweft/internal/command"
)

// AgentArgument is the kernel argument that makes the init run qemu-ga.
const AgentArgument = "qga"

// Agent returns an addition to an initrd with Debian's qemu-ga, and commands
// for it to run: sh, cat and sleep.
func Agent(ctx context.Context) ([]byte, error) {
	var archive cpio
	for _, dir := range []string{"bin", "sbin", "usr", "usr/sbin", "lib", "lib/x86_64-linux-gnu", "lib64"} {
		archive.dir(dir)
	}
	archive.entry("sbin/shutdown", 0o120777, []byte("/init"))
	libraries := map[string]bool{}
	for path, from := range map[string]string{"usr/sbin/qemu-ga": "/usr/sbin/qemu-ga", "bin/sh": "/bin/dash", "bin/cat": "/bin/cat", "bin/sleep": "/bin/sleep"} {
		raw, err := os.ReadFile(from)
		if err != nil {
			return nil, fmt.Errorf("install Debian's qemu-guest-agent: %w", err)
		}
		archive.file(path, raw)
		out, err := command.Output(exec.CommandContext(ctx, "ldd", from))
		if err != nil {
			return nil, fmt.Errorf("ldd %s: %w", from, err)
		}
		for word := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(word, "/") {
				libraries[word] = true
			}
		}
	}
	for path := range libraries {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		archive.file(strings.TrimPrefix(path, "/"), raw)
	}
	return archive.end(), nil
}
