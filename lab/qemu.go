package lab

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/rackweft/rackweft/lab/bmc"
)

// Firmware is a machine's firmware.
type Firmware string

const (
	BIOS Firmware = "bios" // SeaBIOS, and iPXE in the NIC's option ROM
	UEFI Firmware = "uefi" // OVMF, with its own PXE and HTTP boot
)

const (
	ovmfCode  = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars  = "/usr/share/OVMF/OVMF_VARS_4M.fd"
	diskBytes = 8 << 30
	// DiskSerial makes the disk /dev/disk/by-id/virtio-rackdata.
	DiskSerial   = "rackdata"
	manufacturer = "Rackweft"
	product      = "Lab Server"
)

// Boot indexes: the disk comes before the network, as on an installed server;
// an override puts one in front.
const (
	firstIndex = 1
	diskIndex  = 10
	pxeIndex   = 20
)

func bootIndexes(target bmc.Target) (disk, pxe int) {
	switch target {
	case bmc.Pxe, bmc.UefiHTTP:
		return diskIndex, firstIndex
	case bmc.Hdd:
		return firstIndex, pxeIndex
	default:
		return diskIndex, pxeIndex
	}
}

// systemUUID is the same for all racks of one name.
func systemUUID(rack, machine string) string {
	return uuid.NewSHA1(uuid.NameSpaceDNS, []byte(machine+"."+rack+".lab.rackweft")).String()
}

// qemuArguments describes the whole machine. Paths are relative to the
// machine's directory, QEMU's working directory, which keeps sockets within the
// 108 bytes of a unix address.
func (m *Machine) qemuArguments(target bmc.Target, tag string) []string {
	disk, pxe := bootIndexes(target)
	c, direct := m.config, m.directBoot()
	args := []string{
		"qemu-system-x86_64", "-no-user-config", "-nodefaults", "-display", "none",
		"-name", c.Name + ",process=qemu-" + c.Name,
		// graphics=off makes SeaBIOS, and programs that print through it, use
		// the serial port.
		"-machine", "q35,graphics=off,smm=off", "-smp", fmt.Sprint(c.CPUs), "-m", fmt.Sprint(c.MemoryMiB),
		// Paused until the monitor is attached, so that no event is missed.
		"-S",
		"-qmp", "unix:qmp.sock,server=on,wait=off", "-qmp", "unix:monitor.sock,server=on,wait=off",
		"-chardev", "socket,id=console,path=console.sock,server=on,wait=off,logfile=console.log,logappend=on",
		"-serial", "chardev:console",
		"-uuid", m.uuid,
		"-smbios", "type=0,vendor=" + manufacturer + ",version=" + c.biosVersion(),
		"-smbios", fmt.Sprintf("type=1,manufacturer=%s,product=%s,serial=%s,uuid=%s,sku=%s", manufacturer, product, c.serial(), m.uuid, "LAB-1"),
		"-smbios", fmt.Sprintf("type=2,manufacturer=%s,product=%s,serial=%s", manufacturer, product, c.serial()),
		"-smbios", fmt.Sprintf("type=3,manufacturer=%s,serial=%s,asset=%s", manufacturer, c.serial(), escapeOption(tag)),
		"-boot", "strict=on",
		"-object", "rng-random,id=entropy,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=entropy,addr=0x6",
		"-drive", "if=none,id=data,file=disk.qcow2,format=qcow2,discard=unmap",
		"-device", fmt.Sprintf("virtio-blk-pci,id=disk,drive=data,serial=%s,addr=0x5,bootindex=%d", DiskSerial, disk),
		"-netdev", "tap,id=pxe-link,ifname=" + c.tap("pxe") + ",script=no,downscript=no",
		"-device", fmt.Sprintf("virtio-net-pci,id=pxe,netdev=pxe-link,mac=%s,addr=0x3,bootindex=%d%s", c.MAC(0), pxe, optionROM(c.Firmware, direct)),
		"-netdev", "tap,id=prod-link,ifname=" + c.tap("prod") + ",script=no,downscript=no",
		// No ROM and no bootindex: no boot from the production network.
		"-device", fmt.Sprintf("virtio-net-pci,id=prod,netdev=prod-link,mac=%s,addr=0x4,romfile=", c.MAC(1)),
	}
	args = append(args, processor(m.rack.config.Accelerator)...)
	if c.ClockBase != "" {
		args = append(args, "-rtc", "base="+c.ClockBase)
	}
	if direct != nil {
		return append(args, "-kernel", direct.Kernel, "-initrd", direct.Initrd, "-append", direct.Append)
	}
	if c.Firmware == UEFI {
		args = append(args,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+ovmfCode,
			"-drive", "if=pflash,unit=1,format=raw,file="+variablesFile(target),
			"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no")
		if target == bmc.UefiHTTP {
			args = append(args, "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=no")
		}
	}
	return args
}

// variablesFile protects the machine's own variables from HTTP boot: OVMF would
// store its HTTP options there, and try them before PXE from then on.
func variablesFile(target bmc.Target) string {
	if target == bmc.UefiHTTP {
		return "vars-http.fd"
	}
	return "vars.fd"
}

// emulatedCPU is the fastest processor for TCG. Five-level paging (la57) makes
// every page walk longer; with erms and fsrm the kernel clears pages by `rep
// stosb`, which TCG executes byte by byte.
const emulatedCPU = "max,la57=off,erms=off,fsrm=off"

func processor(a Accelerator) []string {
	if a == KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", "tcg,thread=multi,tb-size=512", "-cpu", emulatedCPU}
}

// optionROM gives a BIOS iPXE's ROM, its only way to PXE, and none to OVMF,
// which has drivers and PXE of its own. The ROM is QEMU's default, because QEMU
// adapts the PCI ids of no other ROM to the NIC.
func optionROM(firmware Firmware, direct *DirectBoot) string {
	if firmware == BIOS && direct == nil {
		return ""
	}
	return ",romfile="
}

// escapeOption doubles commas, which separate QEMU's options.
func escapeOption(value string) string { return strings.ReplaceAll(value, ",", ",,") }

func (c MachineConfig) biosVersion() string {
	if c.Firmware == BIOS {
		return "SeaBIOS"
	}
	return "OVMF"
}

func (c MachineConfig) serial() string { return "RWLAB-" + c.Name }

func (c MachineConfig) tap(bridge string) string { return c.Name + "-" + bridge }

func (m *Machine) path(name string) string { return filepath.Join(m.dir, name) }
