package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netns"
)

// sysctl is a kernel parameter of a network namespace.
type sysctl struct{ path, value string }

func (s sysctl) String() string { return "sysctl " + s.path + " = " + s.value }

// wantSysctls are those of a Network's namespace. Nothing in it speaks IPv6
// itself: guests' IPv6 stays on their bridge. Redirects and source routes are
// only taken where both the interface and all say so, redirects are sent where
// either does, and of rp_filter the greater counts (ip-sysctl.rst).
func wantSysctls(n network) []sysctl {
	list := []sysctl{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv6/conf/all/disable_ipv6", "1"},
		{"net/ipv4/conf/all/accept_redirects", "0"},
		{"net/ipv4/conf/all/accept_source_route", "0"},
	}
	for _, name := range []string{"all", vxlanName(n.vni), bridgeName(n.vni)} {
		list = append(list, sysctl{"net/ipv4/conf/" + name + "/rp_filter", "0"}, sysctl{"net/ipv4/conf/" + name + "/send_redirects", "0"})
	}
	return list
}

// newSysctls are what interfaces of a new namespace begin with: else it is
// what the host's have, whatever that is.
func newSysctls() []sysctl {
	return []sysctl{
		{"net/ipv6/conf/all/disable_ipv6", "1"},
		{"net/ipv6/conf/default/disable_ipv6", "1"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv4/conf/default/send_redirects", "0"},
	}
}

// setSysctls writes those that differ, in the namespace ns, and returns them.
func setSysctls(ns netns.NsHandle, want []sysctl) ([]sysctl, error) {
	var set []sysctl
	err := within(ns, func() error {
		for _, s := range want {
			file := filepath.Join("/proc/sys", s.path)
			value, err := os.ReadFile(file)
			if os.IsNotExist(err) && strings.HasPrefix(s.path, "net/ipv6/") {
				continue // a kernel without IPv6
			}
			if err == nil && strings.TrimSpace(string(value)) == s.value {
				continue
			}
			if err := os.WriteFile(file, []byte(s.value), 0o644); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
			set = append(set, s)
		}
		return nil
	})
	return set, err
}
