package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Sources restricts where files may be fetched from: the author of an Image
// chooses the URL, and bootd can reach addresses that the author cannot.
type Sources struct {
	// Allow lists exceptions.
	Allow []Allowed
	// Barred returns what a host name or an address belongs to in the site,
	// such as a BMC; empty for everything else. It may be nil.
	Barred func(host string, a netip.Addr) string
}

// Allowed is a prefix, or the name of a host whatever it resolves to, with a port or all ports.
type Allowed struct {
	Prefix netip.Prefix
	Name   string
	Port   uint16 // 0: all
}

// ParseAllow parses prefixes, addresses and names, each with or without a
// :port.
func ParseAllow(list []string) ([]Allowed, error) {
	all := make([]Allowed, 0, len(list))
	for _, text := range list {
		a, err := parseAllowed(text)
		if err != nil {
			return nil, fmt.Errorf("invalid entry %q: want a prefix, an address or a host name, each with a :port or without", text)
		}
		all = append(all, a)
	}
	return all, nil
}

func parseAllowed(text string) (Allowed, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return Allowed{Prefix: p.Masked()}, nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return Allowed{Prefix: only(a)}, nil
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		if strings.ContainsAny(text, ":/ ") || canonical(text) == "" {
			return Allowed{}, errors.New("no host")
		}
		return Allowed{Name: canonical(text)}, nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || host == "" {
		return Allowed{}, errors.New("no port")
	}
	inner, err := parseAllowed(host)
	inner.Port = uint16(n)
	return inner, err
}

func only(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen())
}

// canonical returns a host name in the form for comparison.
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// matches reports whether an entry allows an address that a URL with this host
// has resolved to.
func (a Allowed) matches(host string, to netip.AddrPort) bool {
	if a.Port != 0 && a.Port != to.Port() {
		return false
	}
	if a.Name != "" {
		return a.Name == canonical(host)
	}
	return a.Prefix.Contains(to.Addr().WithZone(""))
}

// check refuses an address that bootd must not connect to for an Image.
func (s Sources) check(host string, to netip.AddrPort) error {
	a := to.Addr().Unmap()
	to = netip.AddrPortFrom(a, to.Port())
	if slices.ContainsFunc(s.Allow, func(e Allowed) bool { return e.matches(host, to) }) {
		return nil
	}
	what := s.closed(host, a)
	if inner := embedded(a); what == "" && inner.IsValid() {
		what = s.closed(host, inner)
	}
	if what == "" {
		return nil
	}
	return fmt.Errorf("bootd does not fetch from %s, %s: images.allow in its configuration opens it", a, what)
}

// closed returns why bootd does not connect to an address by default; empty
// when it does.
func (s Sources) closed(host string, a netip.Addr) string {
	what := special(a)
	if what == "" {
		what = own(a)
	}
	if what == "" && s.Barred != nil {
		what = s.Barred(canonical(host), a)
	}
	return what
}

// special returns why an address cannot be a file server's; empty for others.
func special(a netip.Addr) string {
	a = a.WithZone("")
	switch {
	case a.IsLoopback():
		return "a loopback address"
	case a.IsUnspecified():
		return "an unspecified address"
	case a.IsLinkLocalUnicast():
		return "a link-local address"
	case a.IsMulticast():
		return "a multicast address"
	}
	for _, r := range reserved() {
		if r.prefix.Contains(a) {
			return r.what
		}
	}
	return ""
}

type reservedRange struct {
	prefix netip.Prefix
	what   string
}

// reserved are further ranges: unassigned addresses, and clouds' metadata
// services.
func reserved() []reservedRange {
	const metadata = "a cloud's metadata service"
	return []reservedRange{
		{netip.MustParsePrefix("0.0.0.0/8"), "an address of this host (RFC 1122)"},
		{netip.MustParsePrefix("240.0.0.0/4"), "a reserved address"},
		{netip.MustParsePrefix("100.100.100.200/32"), metadata},
		{netip.MustParsePrefix("168.63.129.16/32"), metadata},
		{netip.MustParsePrefix("192.0.0.192/32"), metadata},
		{netip.MustParsePrefix("fd00:ec2::254/128"), metadata},
		{netip.MustParsePrefix("fd20:ce::254/128"), metadata},
	}
}

// embedded returns the IPv4 address that a translated or tunnelled IPv6 address
// leads to.
func embedded(a netip.Addr) netip.Addr {
	if !a.Is6() {
		return netip.Addr{}
	}
	b := a.As16()
	switch {
	case netip.MustParsePrefix("64:ff9b::/96").Contains(a), netip.MustParsePrefix("::/96").Contains(a):
		return netip.AddrFrom4([4]byte(b[12:]))
	case netip.MustParsePrefix("2002::/16").Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return netip.Addr{}
}

// own reports that an address is this machine's. If that is unknown, it might
// be any.
func own(a netip.Addr) string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "which may be bootd's own: " + err.Error()
	}
	for _, mine := range addrs {
		if p, err := netip.ParsePrefix(mine.String()); err == nil && p.Addr().WithZone("") == a.WithZone("") {
			return "an address of bootd's own"
		}
	}
	return ""
}

// client uses no proxy, whose view of the network would differ, and checks
// every address when connecting: after names are resolved, and at each
// redirect.
func (s Sources) client() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  nil,
			DialContext:            s.dial,
			DisableKeepAlives:      true, // each redirect connects, and is checked
			DisableCompression:     true, // the digest is of what is sent
			TLSHandshakeTimeout:    headerTime,
			ResponseHeaderTimeout:  headerTime,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: redirect,
	}
}

func (s Sources) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: headerTime, KeepAlive: stallTime, Control: func(_, to string, _ syscall.RawConn) error {
		a, err := netip.ParseAddrPort(to)
		if err != nil {
			return fmt.Errorf("check where the source is: %w", err)
		}
		return s.check(host, a)
	}}
	return d.DialContext(ctx, network, address)
}

const maxRedirects = 5

func redirect(r *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("it redirects more than %d times", maxRedirects)
	}
	if r.URL.Scheme != "http" && r.URL.Scheme != "https" {
		return errors.New("it redirects to something else than http(s)")
	}
	r.Header.Del("Referer") // the query of the source may hold a password
	return nil
}
