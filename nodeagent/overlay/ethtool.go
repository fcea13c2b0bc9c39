package overlay

import (
	"fmt"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Of linux/ethtool.h: all tx-checksum-* features at once, and rx-checksum.
const (
	ethtoolSetRxChecksum = 0x15
	ethtoolGetTxChecksum = 0x16
	ethtoolSetTxChecksum = 0x17
)

// txChecksum reports whether an interface computes checksums.
func txChecksum(ns netns.NsHandle, name string) (bool, error) {
	value, err := ethtool(ns, name, ethtoolGetTxChecksum, 0)
	if err != nil {
		return false, fmt.Errorf("read the offloads of %s: %w", name, err)
	}
	return value != 0, nil
}

func setTxChecksum(ns netns.NsHandle, name string, on bool) error {
	var value uint32
	if on {
		value = 1
	}
	if _, err := ethtool(ns, name, ethtoolSetTxChecksum, value); err != nil {
		return fmt.Errorf("set the offloads of %s: %w", name, err)
	}
	return nil
}

// setRxChecksum sets whether an interface verifies checksums of received packets.
func setRxChecksum(ns netns.NsHandle, name string, on bool) error {
	var value uint32
	if on {
		value = 1
	}
	if _, err := ethtool(ns, name, ethtoolSetRxChecksum, value); err != nil {
		return fmt.Errorf("set the offloads of %s: %w", name, err)
	}
	return nil
}

// ethtool makes one SIOCETHTOOL call with a struct ethtool_value.
func ethtool(ns netns.NsHandle, name string, command, value uint32) (uint32, error) {
	argument := struct{ command, value uint32 }{command, value}
	var request struct { // struct ifreq
		name     [unix.IFNAMSIZ]byte
		argument unsafe.Pointer
		_        [16]byte
	}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	request.argument = unsafe.Pointer(&argument)
	err := within(ns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return errno
		}
		return nil
	})
	runtime.KeepAlive(&argument)
	return argument.value, err
}
