// Package qemu owns what is to be known of QEMU itself: the command line of a
// Guest, the versions, and whether KVM works.
//
// A QEMU gets everything that it touches as an open file: disks, tap, sockets,
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

// The machines.
const (
	Q35     = "q35"
	MicroVM = "microvm"
)

// Accelerator is what runs the Guest's processors.
type Accelerator string

// The accelerators.
const (
	KVM Accelerator = "kvm"
	TCG Accelerator = "tcg" // emulation: works everywhere, ten times slower
)

// FirstFile is the number that the first of Command's files has in QEMU. Those
// below are the launcher's own.
const FirstFile = 128

// VM is a machine as QEMU is told to make it. All files are the caller's, who
// closes them when QEMU has them.
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
	Seed        *os.File // a disk that cloud-init reads, only for reading; nil for none
	Shares      []Share
	TPM         *os.File // a socket that is connected to swtpm's control channel; nil for none
	Display     bool     // of a Q35, for VNC clients that the monitor is handed
	// Incoming has it wait for the state of a machine that runs elsewhere.
	Incoming bool
	// Ignition is the pointer config, nil for none. QEMU opens it anew, so it
	// must be readable for everyone.
	Ignition *os.File
	// Control and Monitor speak QMP; both, Console and Agent are unix sockets
	// that listen.
	Control, Monitor, Console, Agent *os.File
	ConsoleLog                       *os.File // only for writing
}

// UEFI is OVMF's firmware.
type UEFI struct {
	Code       *os.File // only for reading
	Variables  *os.File // for both
	SecureBoot bool
}

// Kernel is loaded by QEMU itself. Its files are opened anew, like Ignition.
type Kernel struct {
	Kernel, Initrd *os.File // Initrd may be nil
	Arguments      string
}

// Disk is a virtio disk, whose serial is its name.
type Disk struct {
	Name   string
	File   *os.File // for reading and writing
	Format string   // qcow2 or raw
	SCSI   bool     // on virtio-scsi, else it is virtio-blk
	// Base is below a qcow2 disk, nil for none; only for reading.
	Base       *os.File
	BaseFormat string
}

// NIC is a virtio NIC on a tap with IFF_VNET_HDR.
type NIC struct {
	MAC   string
	MTU   int
	Tap   *os.File
	VHost *os.File // of /dev/vhost-net, nil where there is none
}

// Share is a directory that the Guest may read as a 9p share.
type Share struct {
	Tag string
	Dir *os.File // opened anew, so it must be readable for QEMU's user
}

// DiskNode is the name by which QMP knows a disk's format layer.
func DiskNode(disk string) string { return "disk-" + disk }

// object is JSON whose fields keep their order: a line reads the same each time.
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

// line gathers a command line and the files that it names.
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

// number hands a file over and returns its number in QEMU.
func (l *line) number(f *os.File) int {
	l.files = append(l.files, f)
	return FirstFile + len(l.files) - 1
}

// set hands a file over to what opens paths, and returns the path. QEMU takes
// the open file if its access mode is the one that it is opened with.
func (l *line) set(f *os.File) string {
	n := l.number(f)
	l.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", n, n))
	return fmt.Sprintf("/dev/fdset/%d", n)
}

// reopened is the path of a file for what knows no fdset.
func (l *line) reopened(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", l.number(f)) }

// Command is the command line after the program's name, and the files that it
// counts on from FirstFile on.
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
		// The names that Fedora CoreOS's and Flatcar's Ignition look for.
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
		"-S", // the agent looks at it before it runs
		// Why it stopped stays to be asked, also by an agent that was away.
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
	// kernel clears pages by `rep stosb`, which TCG takes byte by byte.
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
			// With ACPI it says to have no PIT, and without KVM's clock Linux finds
			// no other to learn the processor's speed by.
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
		l.add("-vnc", "none") // it listens nowhere
		l.json("-device", object{{"driver", "VGA"}, {"id", "display"}})
		// The board has a keyboard; a pointer that is where the viewer's is has to be a tablet.
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

// scsi is the controller of the disks that ask for one.
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
		// Whatever the disk's own header says of what is below it counts for nothing.
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
	// A disk that is full or broken stops the Guest instead of spoiling its file system.
	device := object{{"driver", vm.virtio("blk")}, {"id", "blk-" + d.Name}, {"drive", DiskNode(d.Name)}, {"serial", d.Name},
		{"rerror", "stop"}, {"werror", "stop"}}
	switch {
	case d.SCSI:
		device[0].value = "scsi-hd"
		device = append(device, field{"bus", "scsi.0"}, field{"scsi-id", index}, field{"rotation_rate", 1}) // 1: it does not turn (SBC-4 6.6.3)
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
		device = append(device, field{"romfile", ""}) // nobody boots from a tenant's network
	}
	l.json("-device", device)
}
