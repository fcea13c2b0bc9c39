package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/rackweft/rackweft/internal/file"
)

// envFile returns the content that flanneld writes to /run/flannel/subnet.env, for
// tools that read it: the first address of the lease is the host's own. The tools
// treat the mark in the first line as a comment.
func envFile(n network) []byte {
	var v4, v6 []string
	for _, c := range n.cidrs {
		if c.Addr().Is4() {
			v4 = append(v4, c.String())
		} else {
			v6 = append(v6, c.String())
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s\n", mark(n.uid))
	fmt.Fprintf(&b, "FLANNEL_NETWORK=%s\n", strings.Join(v4, ","))
	fmt.Fprintf(&b, "FLANNEL_SUBNET=%s\n", netip.PrefixFrom(n.lease.Addr().Next(), n.lease.Bits()))
	if n.lease6.IsValid() {
		fmt.Fprintf(&b, "FLANNEL_IPV6_NETWORK=%s\n", strings.Join(v6, ","))
		fmt.Fprintf(&b, "FLANNEL_IPV6_SUBNET=%s\n", netip.PrefixFrom(n.lease6.Addr().Next(), n.lease6.Bits()))
	}
	fmt.Fprintf(&b, "FLANNEL_MTU=%d\n", n.mtu)
	fmt.Fprintf(&b, "FLANNEL_IPMASQ=%v\n", n.masquerade)
	return b.Bytes()
}

// writeEnv updates a Network's file in dir, if dir is not empty; readers see the old
// content or the new.
func writeEnv(dir string, n network) error {
	if dir == "" {
		return nil
	}
	path, want := filepath.Join(dir, n.name+".env"), envFile(n)
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("tell tools of the Network: %w", err)
	}
	if err := file.Replace(path, want, file.Options{Mode: 0o644}); err != nil {
		return fmt.Errorf("tell tools of the Network: %w", err)
	}
	return nil
}

// removeEnv removes the file of the Network with that uid, but not its successor's.
func removeEnv(dir, name, uid string) error {
	if dir == "" {
		return nil
	}
	path := filepath.Join(dir, name+".env")
	have, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && bytes.HasPrefix(have, []byte("# "+mark(uid)+"\n")) {
		err = os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("remove the Network's environment file: %w", err)
	}
	return nil
}
