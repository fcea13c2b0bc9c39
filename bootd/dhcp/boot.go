package dhcp

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/iana"
)

// Boot says what a client loads.
type Boot struct {
	NextServer netip.Addr // the TFTP server; not needed with a URL
	Filename   string     // a name on NextServer, or a URL
	Style      Style      // the form of the answer to a PXE client; Auto suits all but broken firmware
	Reason     string     // why this file, or none; for messages
}

// Style is the form of an answer to a PXE client. No form suits all firmware, so it can be pinned per
// machine.
type Style int

const (
	// Auto is Direct for a BIOS; for UEFI it is Plain with an address and
	// BootServer in a proxy offer.
	Auto Style = iota
	// Direct is option 60 with option 43 {6:8}: "skip discovery, load the file". Old UEFI drops the first
	// proxy offer of this form (edk2#6944: Dell T130, T430).
	Direct
	// BootServer is option 60 without option 43: UEFI asks again on port 4011,
	// and loads what that answer names.
	BootServer
	// Plain has neither option: a lease with a file name, as ISC dhcpd has always sent it. UEFI takes it
	// without asking port 4011. A proxy offer cannot be Plain; BootServer is sent instead.
	Plain
)

func (s Style) String() string {
	return [...]string{"auto", "direct", "bootserver", "plain"}[s]
}

// Endpoints are the addresses of boot files, as seen from the client's subnet.
type Endpoints struct {
	TFTP   netip.Addr           // without port: firmware knows only port 69
	HTTP   string               // base URL, such as http://198.18.0.1:8080; empty if there is none
	Script string               // path of the iPXE script under HTTP, such as /boot.ipxe
	Files  map[iana.Arch]string // first-stage file per architecture, by the values that baseArch returns
}

// DefaultFiles are the first-stage files of the iPXE project, by the names that distributions use.
func DefaultFiles() map[iana.Arch]string {
	return map[iana.Arch]string{
		iana.INTEL_X86PC: "undionly.kpxe",
		iana.EFI_IA32:    "snponly-i386.efi",
		iana.EFI_X86_64:  "snponly.efi",
		iana.EFI_ARM64:   "snponly-arm64.efi",
	}
}

// DefaultLoader is the one for x86-64 and UEFI, for what has not said its architecture.
func DefaultLoader() string { return DefaultFiles()[iana.EFI_X86_64] }

// Bootfile chooses what a client loads. It is a pure function: the same client and endpoints give the
// same file.
//
//   - iPXE that speaks HTTP goes straight to the script.
//   - iPXE without HTTP gets our own iPXE by a tftp:// URL: inside a BIOS it refuses a bare name, and
//     telling by option 93 alone would make it load itself for ever.
//   - UEFI HTTP boot gets the first-stage file by URL.
//   - PXE firmware gets the first-stage file by name.
func Bootfile(c Client, e Endpoints) Boot {
	if c.Kind == IPXE && c.HTTP && e.HTTP != "" {
		return Boot{
			NextServer: e.TFTP,
			Filename:   join(e.HTTP, e.Script),
			Reason:     "iPXE with HTTP: the boot script",
		}
	}
	if c.Pi {
		return Boot{NextServer: e.TFTP, Filename: e.Files[archPi], Reason: "Raspberry Pi boot ROM: TFTP server"}
	}
	if c.Kind == None && len(c.Arch) == 0 {
		return Boot{Reason: "not a boot client"}
	}

	arch, file := firstStage(c, e)
	if file == "" {
		return Boot{Reason: fmt.Sprintf("no boot file for architecture %s", arch)}
	}
	switch {
	case c.Kind == HTTPBoot && e.HTTP == "":
		return Boot{Reason: "UEFI HTTP boot, but there is no HTTP server"}
	case c.Kind == HTTPBoot:
		return Boot{Filename: join(e.HTTP, file), Reason: fmt.Sprintf("UEFI HTTP boot, %s", arch)}
	case !e.TFTP.IsValid():
		return Boot{Reason: fmt.Sprintf("%s client, but there is no TFTP server", c.Kind)}
	case c.Kind == IPXE:
		return Boot{
			NextServer: e.TFTP,
			Filename:   join("tftp://"+e.TFTP.String(), file),
			Reason:     fmt.Sprintf("iPXE without HTTP, %s: an iPXE that has it", arch),
		}
	default:
		return Boot{NextServer: e.TFTP, Filename: file, Reason: fmt.Sprintf("PXE firmware, %s", arch)}
	}
}

// firstStage returns the first of the client's architectures that has a file.
func firstStage(c Client, e Endpoints) (iana.Arch, string) {
	if len(c.Arch) == 0 {
		return iana.INTEL_X86PC, e.Files[iana.INTEL_X86PC] // RFC 4578 is younger than many BIOS ROMs
	}
	for _, a := range c.Arch {
		if file := e.Files[baseArch(a)]; file != "" {
			return a, file
		}
	}
	return c.Arch[0], ""
}

// baseArch maps values that mean the same program to one of them.
func baseArch(a iana.Arch) iana.Arch {
	switch a {
	case iana.EFI_BC, iana.EFI_X86_64_HTTP, iana.EFI_BC_HTTP: // EBC: sent by old x64 firmware
		return iana.EFI_X86_64
	case iana.EFI_X86_HTTP:
		return iana.EFI_IA32
	case iana.EFI_ARM32_HTTP:
		return iana.EFI_ARM32
	case iana.EFI_ARM64_HTTP:
		return iana.EFI_ARM64
	case iana.INTEL_X86PC_HTTP:
		return iana.INTEL_X86PC
	case iana.UBOOT_ARM32_HTTP:
		return iana.UBOOT_ARM32
	case iana.UBOOT_ARM64_HTTP:
		return iana.UBOOT_ARM64
	case iana.EFI_RISCV64_HTTP:
		return iana.EFI_RISCV64
	default:
		return a
	}
}

func join(base, path string) string {
	return strings.TrimRight(base, "/") + "/" + strings.TrimLeft(path, "/")
}
