package lab

import (
	"encoding/binary"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/lab/bmc"
)

// bootSector says that it has booted, on the serial port.
func bootSector() []byte {
	code := []byte{
		0xfa, 0xfc, // cli; cld
		0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
		0xbe, 0x1f, 0x7c, // mov si, 0x7c1f: the text
		0xba, 0xfd, 0x03, // next: mov dx, 0x3fd
		0xec, 0xa8, 0x20, 0x74, 0xfb, // wait: in al, dx; test al, 0x20; jz wait
		0xac, 0x84, 0xc0, 0x74, 0x06, // lodsb; test al, al; jz halt
		0xba, 0xf8, 0x03, 0xee, 0xeb, 0xed, // mov dx, 0x3f8; out dx, al; jmp next
		0xf4, 0xeb, 0xfd, // halt: hlt; jmp halt
	}
	sector := make([]byte, 2048)
	copy(sector[copy(sector, code):], "\r\nbooted from the medium\r\n")
	return sector
}

// efiPartition is a FAT16 file system (UEFI 2.10 §13.3) with iPXE as its boot
// loader, /EFI/BOOT/BOOTX64.EFI.
func efiPartition(t *testing.T) []byte {
	t.Helper()
	loader, err := os.ReadFile("/usr/lib/ipxe/ipxe.efi")
	if err != nil {
		t.Fatalf("package ipxe: %v", err)
	}
	const (
		sector, perCluster, sectors   = 512, 8, 40960
		fatSectors, rootEntries       = 20, 512
		rootStart                     = (1 + fatSectors) * sector
		dataStart                     = rootStart + rootEntries*32
		directory, archive, endOfFile = 0x10, 0x20, 0xffff
	)
	disk := make([]byte, sectors*sector)
	put := func(at int, values ...any) {
		for _, one := range values {
			n, err := binary.Encode(disk[at:], binary.LittleEndian, one)
			if err != nil {
				t.Fatal(err)
			}
			at += n
		}
	}
	put(0, []byte("\xeb\x3c\x90rackweft"), uint16(sector), uint8(perCluster), uint16(1), uint8(1), uint16(rootEntries), uint16(sectors),
		uint8(0xf8), uint16(fatSectors), uint16(32), uint16(2), uint32(0), uint32(0), uint8(0x80), uint8(0), uint8(0x29), uint32(1),
		[]byte("EFI        FAT16   "))
	put(510, uint16(0xaa55))
	put(sector, uint16(0xfff8), uint16(endOfFile), uint16(endOfFile), uint16(endOfFile)) // two directories, one cluster each
	clusters := (len(loader) + sector*perCluster - 1) / (sector * perCluster)
	for i := range clusters {
		next := uint16(4 + i + 1)
		if i == clusters-1 {
			next = endOfFile
		}
		put(sector+2*(4+i), next)
	}
	cluster := func(n int) int { return dataStart + (n-2)*sector*perCluster }
	entry := func(at int, name string, attributes uint8, first, size int) {
		put(at, []byte(name), attributes, make([]byte, 14), uint16(first), uint32(size))
	}
	entry(rootStart, "EFI        ", directory, 2, 0)
	for n, parent := range []int{0, 2} {
		entry(cluster(2+n), ".          ", directory, 2+n, 0)
		entry(cluster(2+n)+32, "..         ", directory, parent, 0)
	}
	entry(cluster(2)+64, "BOOT       ", directory, 3, 0)
	entry(cluster(3)+64, "BOOTX64 EFI", archive, 4, len(loader))
	copy(disk[cluster(4):], loader)
	return disk
}

// bootImage makes an ISO image that boots with either firmware (El Torito).
func bootImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bios.bin"), bootSector(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "efi.img"), efiPartition(t), 0o600); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "boot.iso")
	output, err := exec.CommandContext(t.Context(), "genisoimage", "-quiet", "-o", image, "-b", "bios.bin", "-no-emul-boot", "-boot-load-size", "4",
		"-eltorito-alt-boot", "-e", "efi.img", "-no-emul-boot", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("genisoimage: %v: %s", err, output)
	}
	return image
}

// A medium is inserted into a server that is off, booted from once, and ejected.
func TestBootFromVirtualMedia(t *testing.T) {
	image := bootImage(t)
	r := newRack(t, func(c *Config) {
		c.Machines = []MachineConfig{
			{Name: "m1", Unit: 1, Firmware: BIOS, MemoryMiB: 256, BMC: BMCConfig{Media: bmc.StandardMedia}},
			{Name: "m2", Unit: 2, Firmware: UEFI, MemoryMiB: 512, BMC: BMCConfig{Media: bmc.HPEMedia}},
		}
	})
	listener, err := r.Listen("198.18.1.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(filepath.Dir(image))), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close(); <-served })

	for _, tt := range []struct{ machine, drive, want, after string }{
		{"m1", systemPath + "/VirtualMedia/1", "booted from the medium", "SeaBIOS"},
		{"m2", "/redfish/v1/Managers/1/VirtualMedia/2", "iPXE initialising devices", "Start PXE over IPv4"},
	} {
		t.Run(tt.machine, func(t *testing.T) {
			m := r.Machine(tt.machine)
			do := func(want int, method, path, body string) {
				t.Helper()
				if status, answer := redfish(t, r, m, method, path, body); status != want {
					t.Fatalf("%s %s: status %d, want %d: %v", method, path, status, want, answer)
				}
			}
			const once = `{"Boot":{"BootSourceOverrideTarget":"Cd","BootSourceOverrideEnabled":"Once"}}`
			do(204, "POST", tt.drive+"/Actions/VirtualMedia.InsertMedia", `{"Image":"http://198.18.1.1:8080/boot.iso"}`)
			do(200, "PATCH", systemPath, once)
			resetType(t, r, m, "On", 204)
			waitConsole(t, m, 0, tt.want)
			if o := m.Override(); o.Target != bmc.None {
				t.Errorf("the override is %v after the boot", o)
			}
			// The next boot is from elsewhere, with the same QEMU.
			pid, length := m.current().process.pid, consoleLength(t, m)
			resetType(t, r, m, "ForceRestart", 204)
			waitConsole(t, m, length, tt.after)
			if m.current().process.pid != pid {
				t.Error("a reset with the same medium replaced QEMU")
			}
			do(204, "POST", tt.drive+"/Actions/VirtualMedia.EjectMedia", "{}")
			resetType(t, r, m, "ForceRestart", 204)
			if m.current().media != "" {
				t.Error("QEMU has the medium after its ejection and a reset")
			}
			resetType(t, r, m, "ForceOff", 204)
			if strings.Contains(string(plainConsole(t, m, length)), tt.want) {
				t.Error("the medium was booted from twice")
			}
		})
	}
}

func plainConsole(t *testing.T, m *Machine, from int) []byte {
	t.Helper()
	body, err := os.ReadFile(m.ConsoleLog())
	if err != nil {
		t.Fatal(err)
	}
	return plainText(body[from:])
}
