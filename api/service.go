package api

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// Service is a set of addresses that hosts of a Zone announce: a virtual
// address if one host does, anycast if several do.
type Service struct {
	Name      string            `json:"name" doc:"Name of the Service, unique within the Zone."`
	Addresses []netip.Addr      `json:"addresses" doc:"Addresses in spec.prefixes; each host that has the Service has them on lo."`
	Hosts     map[string]string `json:"hosts,omitempty" doc:"Labels of the Machines that have it. Default: every host of the Zone."`
	Check     *ServiceCheck     `json:"check,omitempty" doc:"Check that must pass on a host for the host to advertise the address. Default: none, the host always does."`
	OnFailure string            `json:"onFailure,omitzero" enum:"withdraw,lastResort" doc:"What a host does with an address whose check fails: withdraw it, or advertise it as worse than any other host's (lastResort). Default: withdraw."`
}

// The values of a Service's onFailure.
const (
	OnFailureWithdraw   = "withdraw"
	OnFailureLastResort = "lastResort"
)

// ServiceCheck checks whether something answers at a Service's address on the
// host itself.
type ServiceCheck struct {
	Type     string   `json:"type" enum:"tcp,http" doc:"tcp: a connection opens. http: GET answers 200 to 399."`
	Port     int      `json:"port" minimum:"1" maximum:"65535" doc:"TCP port to look at, 1 to 65535."`
	Path     string   `json:"path,omitzero" doc:"Path that an http check asks for. Default: /."`
	Interval Duration `json:"interval,omitzero" doc:"Time between two looks, 100ms to 1h. Default: 2s."`
	Timeout  Duration `json:"timeout,omitzero" doc:"Time limit of one look, no longer than the interval. Default: 1s."`
	Rise     int      `json:"rise,omitzero" minimum:"0" maximum:"100" doc:"Passed looks in a row before a failed check passes again, at most 100. Default: 2."`
	Fall     int      `json:"fall,omitzero" minimum:"0" maximum:"100" doc:"Failed looks in a row before it counts as failed, at most 100. Default: 3."`
}

// The types of a ServiceCheck.
const (
	CheckTCP  = "tcp"
	CheckHTTP = "http"
)

// Defaults of a ServiceCheck.
const (
	DefaultCheckInterval = 2 * time.Second
	DefaultCheckTimeout  = time.Second
	DefaultCheckRise     = 2
	DefaultCheckFall     = 3
)

func (s *Service) setDefaults() {
	if s.OnFailure == "" {
		s.OnFailure = OnFailureWithdraw
	}
	c := s.Check
	if c == nil {
		return
	}
	if c.Type == CheckHTTP && c.Path == "" {
		c.Path = "/"
	}
	c.Interval = Duration(c.Interval.Or(DefaultCheckInterval))
	c.Timeout = Duration(c.Timeout.Or(min(DefaultCheckTimeout, time.Duration(c.Interval))))
	if c.Rise == 0 {
		c.Rise = DefaultCheckRise
	}
	if c.Fall == 0 {
		c.Fall = DefaultCheckFall
	}
}

// Selects reports whether a Machine of the Zone should have the service.
func (s *Service) Selects(m *Machine) bool {
	for k, v := range s.Hosts {
		if got, ok := m.Metadata.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Request returns the request of an http check of an address.
func (c *ServiceCheck) Request(a netip.Addr) (*http.Request, error) {
	path, err := url.ParseRequestURI(c.Path)
	if err != nil || path.Host != "" {
		return nil, fmt.Errorf("invalid path %q: want a URL path, such as /healthz", c.Path)
	}
	path.Scheme, path.Host = "http", netip.AddrPortFrom(a, uint16(c.Port)).String()
	return http.NewRequest(http.MethodGet, path.String(), nil)
}

// HostPrefix returns the prefix of a single address.
func HostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func (z *Zone) validateLoopbacks(e *FieldErrors) {
	e.prefixes(at("spec", "loopbacks"), z.Spec.Loopbacks)
	for i, p := range z.Spec.Loopbacks {
		if _, ok := covering(z.Spec.Prefixes, p); !ok && p.IsValid() {
			e.add(at("spec", "loopbacks", i), "%s lies in none of spec.prefixes: nothing else is originated in the Zone", p)
		}
		for j, q := range z.Spec.Loopbacks[:i] {
			if p.Addr().Is4() == q.Addr().Is4() {
				e.add(at("spec", "loopbacks", i), "%s has the same family as entry %d, %s: want at most one prefix per family", p, j, q)
			}
		}
	}
}

func (z *Zone) validateServices(e *FieldErrors) {
	const most = 256 // every host's part has those of its services in it, and a reflector's those of all
	if n := len(z.Spec.Services); n > most {
		e.add(at("spec", "services"), "%d are listed, %d at most", n, most)
	}
	names, addresses := map[string]int{}, map[netip.Addr]string{}
	for i := range z.Spec.Services {
		s := &z.Spec.Services[i]
		here := func(parts ...any) []any { return append(at("spec", "services", i), parts...) }
		e.name(here("name"), s.Name)
		if j, twice := names[s.Name]; twice {
			e.add(here("name"), "%s is already entry %d", s.Name, j)
		}
		names[s.Name] = i
		if len(s.Addresses) == 0 {
			e.add(here("addresses"), "an address is required, in one of spec.prefixes")
		}
		for j, a := range s.Addresses {
			z.validateServiceAddress(e, here("addresses", j), a)
			if other, twice := addresses[a]; twice {
				e.add(here("addresses", j), "%s is already an address of service %s", a, other)
			}
			addresses[a] = s.Name
		}
		e.oneOf(here("onFailure"), s.OnFailure, OnFailureWithdraw, OnFailureLastResort)
		if s.Check != nil {
			s.Check.validate(e, here("check"))
		} else if s.OnFailure == OnFailureLastResort {
			e.add(here("onFailure"), "a service without a check never fails: add spec.services/%d/check", i)
		}
	}
}

func (z *Zone) validateServiceAddress(e *FieldErrors, where []any, a netip.Addr) {
	switch {
	case !a.IsValid():
		e.add(where, "an address is required")
	case a.Is4In6() || a.Zone() != "":
		e.add(where, "invalid address %s: want %s", a, a.Unmap().WithZone(""))
	default:
		if _, ok := covering(z.Spec.Prefixes, HostPrefix(a)); !ok {
			e.add(where, "%s lies in none of spec.prefixes: nothing else is originated in the Zone", a)
		}
		if p, ok := covering(z.Spec.Loopbacks, HostPrefix(a)); ok {
			e.add(where, "%s lies in %s of spec.loopbacks, from which hosts get addresses of their own", a, p)
		}
	}
}

func (c *ServiceCheck) validate(e *FieldErrors, where []any) {
	here := func(part string) []any { return append(append([]any{}, where...), part) }
	e.oneOf(here("type"), c.Type, CheckTCP, CheckHTTP)
	e.between(here("port"), c.Port, 1, 65535)
	switch _, err := c.Request(netip.IPv6Loopback()); {
	case c.Type == CheckTCP && c.Path != "":
		e.add(here("path"), "a check of type tcp has no path: remove it, or set type http")
	case c.Type == CheckHTTP && (err != nil || !strings.HasPrefix(c.Path, "/")):
		e.add(here("path"), "invalid path %q: want a URL path, such as /healthz", c.Path)
	}
	if d := time.Duration(c.Interval); d < 100*time.Millisecond || d > time.Hour {
		e.add(here("interval"), "%s is not between 100ms and 1h", d)
	}
	if d := time.Duration(c.Timeout); d < time.Millisecond || d > time.Duration(c.Interval) {
		e.add(here("timeout"), "%s is not between 1ms and the interval, %s", d, time.Duration(c.Interval))
	}
	e.between(here("rise"), c.Rise, 1, 100)
	e.between(here("fall"), c.Fall, 1, 100)
}
