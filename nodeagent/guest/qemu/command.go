// Package qemu holds what depends on QEMU itself: the command line of a Guest,
// its versions, and whether KVM works.
//
// A QEMU gets everything that it uses as an open file: disks, tap, sockets,
// logs, firmware. It runs as a user who may open none of them.
package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Machine types.
const (
	Q35     = "q35"
	MicroVM = "microvm"
)

// Accelerator is the kind of virtual processor.
type Accelerator string

// Accelerators.
const (
	KVM Accelerator = "kvm"
	TCG Accelerator = "tcg" // emulation: works everywhere, ten times slower
)

// FirstFile is QEMU's descriptor of the first of Command's files. Lower ones
// belong to the launcher.
const FirstFile = 128

// VM describes a machine to QEMU. The caller owns all files and closes them
// when QEMU has them.
type VM struct {
	Name        string
	UUID        string
	Machine     string // Q35 or MicroVM
	Accelerator Accelerator
	CPUs        int
	Memory      int64 // bytes
	HugePages   bool
	NUMANode    *int
	UEFI        *UEFI // nil for a BIOS
	Kernel      *Kernel
	Disks       []Disk // in boot order
	NIC         *NIC
	Seed        *os.File // a read-only disk for cloud-init; nil when there is none
	Shares      []Share
	TPM         *os.File // a socket that is connected to swtpm's control channel; nil when there is none
	Display     bool     // a display of a Q35, for VNC clients passed to the monitor
	// Incoming makes QEMU wait for the migration state of another QEMU.
	Incoming bool
	// Ignition is the pointer config, nil when there is none. QEMU reopens it,
	// so it must be world-readable.
	Ignition *os.File
	// Control and Monitor speak QMP. They, Console and Agent are listening unix
	// sockets.
	Control, Monitor, Console, Agent *os.File
	ConsoleLog                       *os.File // write-only
}

// UEFI is the OVMF firmware.
type UEFI struct {
	Code       *os.File // read-only
	Variables  *os.File // read-write
	SecureBoot bool
}

// Kernel is loaded by QEMU. Its files are reopened, like Ignition.
type Kernel struct {
	Kernel, Initrd *os.File // Initrd may be nil
	Arguments      string
}

// Disk is a virtio disk, whose serial is its name.
type Disk struct {
	Name   string
	File   *os.File // read-write
	Format string   // qcow2 or raw
	SCSI   bool     // virtio-scsi instead of virtio-blk
	// Base is the base of a qcow2 disk, read-only; nil when there is none.
	Base       *os.File
	BaseFormat string
}

// NIC is a virtio NIC on a tap with IFF_VNET_HDR.
type NIC struct {
	MAC   string
	MTU   int
	Tap   *os.File
	VHost *os.File // /dev/vhost-net, nil when the host has none
}

// Share is a directory that the Guest may read over 9p.
type Share struct {
	Tag string
	Dir *os.File // reopened, so it must be readable for QEMU's user
}

// DiskNode is the QMP node name of a disk's format layer.
func DiskNode(disk string) string { return "disk-" + disk }

// object is JSON whose fields keep their order, so that a command line is
// always the same.
type object []field

type field struct {
	name  string
	value any
}

// MarshalJSON implements json.Marshaler.
func (o object) MarshalJSON() ([]byte, error) {
	var b strings.Builder
	b.WriteByte('{')
	for i, f := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(f.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(f.value)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return []byte(b.String()), nil
}

// line collects a command line and the files that it refers to.
type line struct {
	args  []string
	files []*os.File
	err   error
}

func (l *line) add(args ...string) { l.args = append(l.args, args...) }

// json adds an option whose value is an object.
func (l *line) json(option string, o object) {
	raw, err := json.Marshal(o)
	if err != nil && l.err == nil {
		l.err = fmt.Errorf("QEMU's %s: %w", option, err)
	}
	l.add(option, string(raw))
}

// number adds a file and returns its descriptor in QEMU.
func (l *line) number(f *os.File) int {
	l.files = append(l.files, f)
	return FirstFile + len(l.files) - 1
}

// set adds a file for an option that opens paths, and returns the path. QEMU
// takes the fd from the set whose access mode matches.
func (l *line) set(f *os.File) string {
	n := l.number(f)
	l.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", n, n))
	return fmt.Sprintf("/dev/fdset/%d", n)
}

// reopened returns the path of a file for options without fdset support.
func (l *line) reopened(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", l.number(f)) }

// Command returns the command line after the program's name, and the files that
// become descriptors FirstFile and up.
func (vm VM) Command() (args []string, files []*os.File, err error) {
	if vm.Machine == MicroVM && vm.Accelerator == TCG && vm.Kernel == nil {
		return nil, nil, errors.New("without KVM a microvm boots only a kernel of its Image, not from a disk: write machine: q35")
	}
	l := new(line)
	vm.base(l)
	vm.memory(l)
	vm.channels(l)
	vm.board(l)
	vm.scsi(l)
	for i, d := range vm.Disks {
		vm.disk(l, d, i)
	}
	if vm.Seed != nil {
		l.json("-blockdev", object{{"driver", "raw"}, {"node-name", "seed"}, {"read-only", true},
			{"file", object{{"driver", "file"}, {"filename", l.set(vm.Seed)}, {"read-only", true}}}})
		l.json("-device", object{{"driver", vm.virtio("blk")}, {"drive", "seed"}})
	}
	vm.nic(l)
	for _, s := range vm.Shares {
		id := "share-" + s.Tag
		l.add("-fsdev", fmt.Sprintf("local,id=%s,path=%s,security_model=none,readonly=on", id, l.reopened(s.Dir)))
		l.json("-device", object{{"driver", vm.virtio("9p")}, {"fsdev", id}, {"mount_tag", s.Tag}})
	}
	if vm.Incoming {
		l.add("-incoming", "defer")
	}
	if vm.Ignition != nil {
		// The names that the Ignition of Fedora CoreOS and Flatcar looks for.
		path := l.reopened(vm.Ignition)
		l.add("-fw_cfg", "name=opt/com.coreos/config,file="+path, "-fw_cfg", "name=opt/org.flatcar-linux/config,file="+path)
	}
	if k := vm.Kernel; k != nil {
		l.add("-kernel", l.reopened(k.Kernel), "-append", k.Arguments)
		if k.Initrd != nil {
			l.add("-initrd", l.reopened(k.Initrd))
		}
	}
	return l.args, l.files, l.err
}

func (vm VM) base(l *line) {
	l.add("-no-user-config", "-nodefaults", "-display", "none", "-msg", "timestamp=on",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-S", // paused, until the agent has checked it
		// QEMU stays to be asked why it stopped, also by an agent that was not
		// running then.
		"-action", "reboot=reset,shutdown=pause,panic=pause,watchdog=pause",
		"-name", "guest="+vm.Name+",debug-threads=on", "-uuid", vm.UUID,
		"-smp", fmt.Sprintf("cpus=%d,sockets=1,cores=%d,threads=1", vm.CPUs, vm.CPUs),
		"-rtc", "base=utc,driftfix=slew", "-boot", "strict=on")
	if vm.Machine == Q35 {
		l.add("-smbios", "type=1,manufacturer=Rackweft,product=Guest,serial="+vm.Name+",uuid="+vm.UUID)
	}
	if vm.Accelerator == KVM {
		l.add("-accel", "kvm", "-cpu", "host")
		return
	}
	// Five-level paging makes every page walk longer; with erms and fsrm the
	// kernel clears pages by `rep stosb`, which TCG executes byte by byte.
	l.add("-accel", "tcg,thread=multi,tb-size=128", "-cpu", "max,la57=off,erms=off,fsrm=off")
}

func (vm VM) memory(l *line) {
	kind := "memory-backend-ram"
	if vm.HugePages {
		kind = "memory-backend-memfd"
	}
	o := object{{"qom-type", kind}, {"id", "ram"}, {"size", vm.Memory}}
	if vm.HugePages {
		o = append(o, field{"hugetlb", true}, field{"prealloc", true})
	}
	if vm.NUMANode != nil {
		o = append(o, field{"host-nodes", []int{*vm.NUMANode}}, field{"policy", "bind"})
	}
	l.json("-object", o)
	l.add("-m", strconv.FormatInt(vm.Memory>>10, 10)+"k")
}

func (vm VM) board(l *line) {
	machine := []string{vm.Machine, "memory-backend=ram", "dump-guest-core=off"}
	switch {
	case vm.Machine == MicroVM:
		machine = append(machine, "rtc=on")
		if vm.Accelerator == TCG {
			// With ACPI the machine reports that it has no PIT, and without
			// KVM's clock Linux then has no other to calibrate the processor
			// by.
			machine = append(machine, "acpi=off")
		}
	case vm.UEFI == nil:
		machine = append(machine, "smm=off", "graphics=off", "vmport=off") // graphics=off: SeaBIOS talks to the serial port
	default:
		smm := "smm=off"
		if vm.UEFI.SecureBoot {
			smm = "smm=on"
			l.add("-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1")
		}
		l.json("-blockdev", object{{"driver", "raw"}, {"node-name", "firmware-code"}, {"read-only", true},
			{"file", object{{"driver", "file"}, {"filename", l.set(vm.UEFI.Code)}}}})
		l.json("-blockdev", object{{"driver", "raw"}, {"node-name", "firmware-variables"},
			{"file", object{{"driver", "file"}, {"filename", l.set(vm.UEFI.Variables)}}}})
		machine = append(machine, smm, "vmport=off", "pflash0=firmware-code", "pflash1=firmware-variables")
	}
	l.add("-machine", strings.Join(machine, ","))

	l.json("-object", object{{"qom-type", "rng-builtin"}, {"id", "entropy"}})
	l.json("-device", object{{"driver", vm.virtio("rng")}, {"rng", "entropy"}})
	l.json("-device", object{{"driver", vm.virtio("balloon")}, {"id", "balloon"}, {"deflate-on-oom", true}, {"free-page-reporting", !vm.HugePages}})
	if vm.Machine == Q35 {
		l.json("-object", object{{"qom-type", "iothread"}, {"id", "io"}})
		l.json("-device", object{{"driver", "i6300esb"}, {"id", "watchdog"}})
		l.json("-device", object{{"driver", "pvpanic"}})
	}
	if vm.TPM != nil {
		l.add("-chardev", fmt.Sprintf("socket,id=tpm,fd=%d", l.number(vm.TPM)), "-tpmdev", "emulator,id=tpm0,chardev=tpm")
		l.json("-device", object{{"driver", "tpm-crb"}, {"tpmdev", "tpm0"}})
	}
	if vm.Display {
		l.add("-vnc", "none") // not listening
		l.json("-device", object{{"driver", "VGA"}, {"id", "display"}})
		// The board has a keyboard. A pointer at the viewer's position has to
		// be a tablet.
		l.json("-device", object{{"driver", "qemu-xhci"}, {"id", "usb"}})
		l.json("-device", object{{"driver", "usb-tablet"}, {"id", "tablet"}, {"bus", "usb.0"}})
	}
}

// virtio is the name of a device on the machine's bus.
func (vm VM) virtio(device string) string {
	if vm.Machine == MicroVM {
		return "virtio-" + device + "-device"
	}
	return "virtio-" + device + "-pci"
}

func (vm VM) channels(l *line) {
	socket := func(id string, f *os.File, more string) {
		l.add("-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off%s", id, l.number(f), more))
	}
	monitor := func(id string, f *os.File) {
		if f != nil {
			socket(id, f, "")
			l.add("-mon", "chardev="+id+",mode=control")
		}
	}
	monitor("control", vm.Control)
	monitor("monitor", vm.Monitor)
	if vm.Console != nil {
		more := ""
		if vm.ConsoleLog != nil {
			more = ",logappend=on,logfile=" + l.set(vm.ConsoleLog)
		}
		socket("console", vm.Console, more)
		l.add("-serial", "chardev:console")
	}
	if vm.Agent != nil {
		socket("agent", vm.Agent, "")
		l.json("-device", object{{"driver", vm.virtio("serial")}, {"id", "channels"}})
		l.json("-device", object{{"driver", "virtserialport"}, {"chardev", "agent"}, {"name", "org.qemu.guest_agent.0"}})
	}
}

// scsi adds the controller for disks on virtio-scsi.
func (vm VM) scsi(l *line) {
	if !slices.ContainsFunc(vm.Disks, func(d Disk) bool { return d.SCSI }) {
		return
	}
	device := object{{"driver", vm.virtio("scsi")}, {"id", "scsi"}}
	if vm.Machine == Q35 {
		device = append(device, field{"iothread", "io"})
	}
	l.json("-device", device)
}

func (vm VM) disk(l *line, d Disk, index int) {
	format := object{{"driver", d.Format}, {"node-name", DiskNode(d.Name)}, {"discard", "unmap"}, {"detect-zeroes", "unmap"},
		{"file", object{{"driver", "file"}, {"filename", l.set(d.File)}, {"discard", "unmap"}, {"aio", "threads"}}}}
	if d.Format == "qcow2" {
		// A base that is named in the disk's header is ignored.
		var below any
		if d.Base != nil {
			base := object{{"driver", d.BaseFormat}, {"node-name", "base-" + d.Name}, {"read-only", true},
				{"file", object{{"driver", "file"}, {"filename", l.set(d.Base)}, {"read-only", true}}}}
			if d.BaseFormat == "qcow2" {
				base = append(base, field{"backing", nil})
			}
			below = base
		}
		format = append(format, field{"backing", below})
	}
	l.json("-blockdev", format)
	// A disk error pauses the Guest, so that its file system is not damaged.
	device := object{{"driver", vm.virtio("blk")}, {"id", "blk-" + d.Name}, {"drive", DiskNode(d.Name)}, {"serial", d.Name},
		{"rerror", "stop"}, {"werror", "stop"}}
	switch {
	case d.SCSI:
		device[0].value = "scsi-hd"
		device = append(device, field{"bus", "scsi.0"}, field{"scsi-id", index}, field{"rotation_rate", 1}) // 1: non-rotating (SBC-4 6.6.3)
	case vm.Machine == Q35: // virtio-mmio has no ioeventfd for it
		device = append(device, field{"iothread", "io"})
	}
	if vm.Kernel == nil {
		device = append(device, field{"bootindex", index + 1})
	}
	l.json("-device", device)
}

func (vm VM) nic(l *line) {
	n := vm.NIC
	if n == nil {
		return
	}
	backend := object{{"type", "tap"}, {"id", "link"}, {"fd", strconv.Itoa(l.number(n.Tap))}}
	if n.VHost != nil {
		backend = append(backend, field{"vhost", true}, field{"vhostfd", strconv.Itoa(l.number(n.VHost))})
	}
	l.json("-netdev", backend)
	device := object{{"driver", vm.virtio("net")}, {"id", "nic"}, {"netdev", "link"}, {"mac", n.MAC}, {"host_mtu", n.MTU}}
	if vm.Machine == Q35 {
		device = append(device, field{"romfile", ""}) // no network boot from a tenant's network
	}
	l.json("-device", device)
}
