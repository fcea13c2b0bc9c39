package guest

import (
	"fmt"
	"os"
	"strings"
)

// enoughHugePages returns an error when there are too few huge pages for a
// Guest's memory: QEMU's own message says less.
func enoughHugePages(memory int64) error {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return fmt.Errorf("look for huge pages: %w", err)
	}
	return checkHugePages(string(raw), memory)
}

// checkHugePages reads proc_meminfo(5). QEMU takes pages of the default size.
func checkHugePages(meminfo string, memory int64) error {
	var free, reserved, kib int64
	for line := range strings.Lines(meminfo) {
		for name, to := range map[string]*int64{"HugePages_Free:": &free, "HugePages_Rsvd:": &reserved, "Hugepagesize:": &kib} {
			rest, ok := strings.CutPrefix(line, name)
			if !ok {
				continue
			}
			if _, err := fmt.Sscan(rest, to); err != nil {
				return fmt.Errorf("/proc/meminfo: %q: %w", line, err)
			}
		}
	}
	switch size, free := kib<<10, free-reserved; {
	case size <= 0:
		return fmt.Errorf("the host's kernel has no huge pages")
	case memory%size != 0:
		return fmt.Errorf("invalid memory of %d bytes: want a multiple of the host's huge pages of %d KiB", memory, kib)
	case free < memory/size:
		return fmt.Errorf("it needs %d huge pages of %d KiB, and the host has %d free: raise vm.nr_hugepages there (sysctl)", memory/size, kib, free)
	}
	return nil
}
