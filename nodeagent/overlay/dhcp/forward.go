package dhcp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Forwarder forwards guests' questions to resolvers, from the host's namespace: guests
// cannot reach the resolvers themselves. All Servers share one.
type Forwarder struct {
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
	path  string
	slots chan struct{}

	mu     sync.Mutex
	host   []netip.Addr
	read   time.Time // when the file was last checked
	change time.Time // of the file
}

const (
	resolversAsked = 3
	resolverTime   = 2 * time.Second // for one
	resolvConfAge  = 5 * time.Second
	// udpSize is the size that passes everywhere unfragmented (DNS flag day 2020).
	udpSize = 1232
)

// NewForwarder creates a Forwarder. dial connects to resolvers; resolvConf is the file
// with the host's resolvers, /etc/resolv.conf.
func NewForwarder(dial func(ctx context.Context, network, address string) (net.Conn, error), resolvConf string) *Forwarder {
	return &Forwarder{dial: dial, path: resolvConf, slots: make(chan struct{}, forwardedAtAll)}
}

var errBusy = errors.New("too many questions are being forwarded on this host")

// ask forwards a question to the resolvers in turn, or to the host's if none are given.
// If a resolver fails, the next one gets the question.
func (f *Forwarder) ask(ctx context.Context, question *dns.Msg, resolvers []netip.Addr, network string) (*dns.Msg, error) {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return nil, errBusy
	}
	if len(resolvers) == 0 {
		var err error
		if resolvers, err = f.hostResolvers(); err != nil {
			return nil, err
		}
	}
	var last *dns.Msg
	var faults []error
	for _, r := range resolvers[:min(len(resolvers), resolversAsked)] {
		answer, err := f.askOne(ctx, question, netip.AddrPortFrom(r, 53).String(), network)
		if err != nil {
			faults = append(faults, fmt.Errorf("resolver %s: %w", r, err))
			continue
		}
		if last = answer; answer.Rcode != dns.RcodeServerFailure && answer.Rcode != dns.RcodeRefused {
			return answer, nil
		}
	}
	if last != nil {
		return last, nil
	}
	return nil, errors.Join(faults...)
}

// askOne sends a new message: only name, type and two flags are the guest's.
func (f *Forwarder) askOne(ctx context.Context, question *dns.Msg, resolver, network string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, resolverTime)
	defer cancel()
	out := new(dns.Msg)
	out.SetQuestion(question.Question[0].Name, question.Question[0].Qtype)
	out.CheckingDisabled = question.CheckingDisabled
	opt := question.IsEdns0()
	out.SetEdns0(udpSize, opt != nil && opt.Do())
	conn, err := f.dial(ctx, network, resolver)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	answer, _, err := new(dns.Client).ExchangeWithConnContext(ctx, out, &dns.Conn{Conn: conn, UDPSize: udpSize})
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, err
	case !answer.Response || len(answer.Question) != 1 || answer.Question[0].Qtype != out.Question[0].Qtype ||
		!strings.EqualFold(answer.Question[0].Name, out.Question[0].Name):
		return nil, errors.New("it answers another question")
	}
	return answer, nil
}

// hostResolvers reads resolv.conf(5) when it has changed.
func (f *Forwarder) hostResolvers() ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.read) > resolvConfAge {
		if err := f.readResolvers(); err != nil {
			return nil, err
		}
		f.read = time.Now()
	}
	if len(f.host) == 0 {
		return nil, fmt.Errorf("no resolver: %s lists none; give the Network or the Site DNS servers", f.path)
	}
	return f.host, nil
}

func (f *Forwarder) readResolvers() error {
	info, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		f.host, f.change = nil, time.Time{}
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the host's resolvers: %w", err)
	}
	if info.ModTime().Equal(f.change) {
		return nil
	}
	config, err := dns.ClientConfigFromFile(f.path)
	if err != nil {
		return fmt.Errorf("find the host's resolvers: %w", err)
	}
	f.host, f.change = nil, info.ModTime()
	for _, server := range config.Servers {
		if a, err := netip.ParseAddr(server); err == nil {
			f.host = append(f.host, a)
		}
	}
	return nil
}
