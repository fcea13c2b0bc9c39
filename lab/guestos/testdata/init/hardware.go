package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// obeyHardware is for what a Guest's machine consists of.
func obeyHardware(words []string) string {
	switch words[0] {
	case "load":
		for _, module := range words[1:] {
			if module == "" {
				continue
			}
			if err := load(module); err != nil && err != unix.EEXIST {
				return module + text(err)
			}
		}
		return "ok"
	case "cat":
		raw, err := os.ReadFile(words[1])
		return strings.TrimSpace(string(raw)) + text(err)
	case "list":
		entries, err := os.ReadDir(words[1])
		names := make([]string, len(entries))
		for i, e := range entries {
			names[i] = e.Name()
		}
		return strings.Join(names, " ") + text(err)
	case "touch":
		return "ok" + text(os.WriteFile(words[1], nil, 0o644))
	case "mount": // TYPE SOURCE DIR OPTIONS
		_ = os.MkdirAll(words[3], 0o755)
		flags := uintptr(0)
		if words[1] == "iso9660" {
			flags = unix.MS_RDONLY
		}
		return "ok" + text(unix.Mount(words[2], words[3], words[1], flags, words[4]))
	case "random":
		f, err := os.Open("/dev/hwrng")
		if err != nil {
			return err.Error()
		}
		defer func() { _ = f.Close() }()
		n, err := f.Read(make([]byte, 16))
		return fmt.Sprintf("%d bytes", n) + text(err)
	case "tpm":
		return tpm(words[1])
	case "hang": // after the driver's heartbeat the watchdog fires
		_, err := os.OpenFile("/dev/watchdog", os.O_WRONLY, 0)
		if err != nil {
			return err.Error()
		}
		time.Sleep(time.Hour)
	case "panic":
		if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
			return err.Error()
		}
	}
	return "?"
}
