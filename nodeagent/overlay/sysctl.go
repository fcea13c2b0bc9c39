package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// sysctl is a kernel parameter of a network namespace.
type sysctl struct{ path, value string }

func (s sysctl) String() string { return "sysctl " + s.path + " = " + s.value }

// firstSysctls returns the sysctls of a Network's namespace that must be set before its
// interfaces have addresses. Without an IPv6 lease, IPv6 is off in it: guests' IPv6
// packets stay on their bridge. The kernel generates no link-local addresses
// (addr_gen_mode 1), which would differ from host to host.
func firstSysctls(n network) []sysctl {
	if !n.lease6.IsValid() {
		return []sysctl{{"net/ipv6/conf/all/disable_ipv6", "1"}}
	}
	return []sysctl{
		{"net/ipv6/conf/default/addr_gen_mode", "1"},
		{"net/ipv6/conf/default/accept_ra", "0"},
		{"net/ipv6/conf/all/forwarding", "1"},
		{"net/ipv6/conf/all/disable_ipv6", "0"},
	}
}

// wantSysctls returns the sysctls of a Network's namespace. Redirects and source routes
// are accepted only if both the interface and all say so, redirects are sent if either
// does, and the greater rp_filter counts (ip-sysctl.rst).
func wantSysctls(n network) []sysctl {
	list := append(firstSysctls(n),
		sysctl{"net/ipv4/ip_forward", "1"},
		sysctl{"net/ipv4/conf/all/accept_redirects", "0"},
		sysctl{"net/ipv4/conf/all/accept_source_route", "0"},
	)
	// With br_netfilter the filters would see a bridge's IP packets twice.
	for _, name := range []string{"iptables", "ip6tables", "arptables"} {
		list = append(list, sysctl{"net/bridge/bridge-nf-call-" + name, "0"})
	}
	for _, name := range []string{"all", vxlanName(n.vni), bridgeName(n.vni)} {
		list = append(list, sysctl{"net/ipv4/conf/" + name + "/rp_filter", "0"}, sysctl{"net/ipv4/conf/" + name + "/send_redirects", "0"})
	}
	if n.lease6.IsValid() {
		for _, name := range []string{vxlanName(n.vni), bridgeName(n.vni)} {
			list = append(list, sysctl{"net/ipv6/conf/" + name + "/disable_ipv6", "0"},
				sysctl{"net/ipv6/conf/" + name + "/accept_ra", "0"}, sysctl{"net/ipv6/conf/" + name + "/accept_redirects", "0"})
		}
	}
	return list
}

// newSysctls returns the defaults for interfaces of a new namespace, which otherwise
// inherits the host's.
func newSysctls() []sysctl {
	return []sysctl{
		{"net/ipv6/conf/all/disable_ipv6", "1"},
		{"net/ipv6/conf/default/disable_ipv6", "1"},
		{"net/ipv6/conf/default/addr_gen_mode", "1"},
		{"net/ipv6/conf/default/accept_ra", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv4/conf/default/send_redirects", "0"},
	}
}

// setSysctls writes the sysctls that differ, in the namespace ns, and returns them.
func setSysctls(ns netns.NsHandle, want []sysctl) ([]sysctl, error) {
	var set []sysctl
	err := within(ns, func() error {
		for _, s := range want {
			if is, err := s.differs(); err != nil || !is {
				if err != nil {
					return err
				}
				continue
			}
			if err := os.WriteFile(s.file(), []byte(s.value), 0o644); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
			set = append(set, s)
		}
		return nil
	})
	return set, err
}

// differing returns the sysctls that setSysctls would write.
func differing(ns netns.NsHandle, want []sysctl) ([]sysctl, error) {
	var list []sysctl
	err := within(ns, func() error {
		for _, s := range want {
			is, err := s.differs()
			if err != nil {
				return err
			}
			if is {
				list = append(list, s)
			}
		}
		return nil
	})
	return list, err
}

func (s sysctl) file() string { return filepath.Join("/proc/sys", s.path) }

// differs reads the sysctl in the namespace of the calling thread.
func (s sysctl) differs() (bool, error) {
	value, err := readShort(s.file())
	if os.IsNotExist(err) && (strings.HasPrefix(s.path, "net/ipv6/") || strings.HasPrefix(s.path, "net/bridge/")) {
		return false, nil // a kernel without IPv6, or without br_netfilter
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", s, err)
	}
	return strings.TrimSpace(string(value)) != s.value, nil
}

// readShort reads a file of a few bytes. Every pass reads a dozen for each Network, and
// os.ReadFile makes twice as many system calls.
func readShort(file string) ([]byte, error) {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: file, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	b := make([]byte, 64)
	n, err := unix.Read(fd, b)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: file, Err: err}
	}
	return b[:n], nil
}
