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
// itself: guests' IPv6 stays on their bridge.
func wantSysctls() []sysctl {
	return append([]sysctl{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv6/conf/all/disable_ipv6", "1"},
		{"net/ipv6/conf/default/disable_ipv6", "1"},
	}, linkSysctls("all", "default")...)
}

// linkSysctls are those of single interfaces: a new one has the host's values,
// whatever they are.
func linkSysctls(names ...string) []sysctl {
	var list []sysctl
	for _, name := range names {
		for _, key := range []string{"rp_filter", "accept_redirects", "send_redirects", "accept_source_route"} {
			list = append(list, sysctl{"net/ipv4/conf/" + name + "/" + key, "0"})
		}
	}
	return list
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
