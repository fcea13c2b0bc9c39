package hardwarebench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vincent-petithory/dataurl"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

// relay is the DHCP relay of the segment that the servers boot on: bootd does not see their frames.
type relay struct {
	conn *net.UDPConn
	mu   sync.Mutex
	wait map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4
}

func newRelay() (*relay, error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(simAddress), Port: dhcpv4.ServerPort})
	if err != nil {
		return nil, err
	}
	return &relay{conn: conn, wait: map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4{}}, nil
}

// run hands answers to those that wait for them, until the socket is closed.
func (r *relay) run() error {
	buffer := make([]byte, 2048)
	for {
		n, err := r.conn.Read(buffer)
		if err != nil {
			return err
		}
		answer, err := dhcpv4.FromBytes(buffer[:n])
		if err != nil {
			return err
		}
		r.mu.Lock()
		to := r.wait[answer.TransactionID]
		r.mu.Unlock()
		if to != nil {
			select {
			case to <- answer:
			default:
			}
		}
	}
}

// lease does DHCP as iPXE does.
func (r *relay) lease(ctx context.Context, mac string) (netip.Addr, error) {
	hardware, err := net.ParseMAC(mac)
	if err != nil {
		return netip.Addr{}, err
	}
	discover, err := dhcpv4.NewDiscovery(hardware, dhcpv4.WithRelay(net.ParseIP(simAddress)),
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00000:UNDI:002001")),
		dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionUserClassInformation, []byte("iPXE"))))
	if err != nil {
		return netip.Addr{}, err
	}
	offer, err := r.ask(ctx, discover)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("DISCOVER: %w", err)
	}
	request, err := dhcpv4.NewRequestFromOffer(offer, dhcpv4.WithRelay(net.ParseIP(simAddress)))
	if err != nil {
		return netip.Addr{}, err
	}
	ack, err := r.ask(ctx, request)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("REQUEST: %w", err)
	}
	address, _ := netip.AddrFromSlice(ack.YourIPAddr.To4())
	return address, nil
}

// ask sends until an answer comes, as clients do.
func (r *relay) ask(ctx context.Context, m *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
	answer := make(chan *dhcpv4.DHCPv4, 1)
	r.mu.Lock()
	r.wait[m.TransactionID] = answer
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.wait, m.TransactionID)
		r.mu.Unlock()
	}()
	for {
		if _, err := r.conn.WriteToUDP(m.ToBytes(), &net.UDPAddr{IP: net.ParseIP(bootdAddress), Port: dhcpv4.ServerPort}); err != nil {
			return nil, err
		}
		select {
		case a := <-answer:
			return a, nil
		case <-time.After(4 * time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// walker boots servers, from DHCP to Active.
type walker struct {
	relay  *relay
	client *api.Client // bootd's, of the administrator

	streams sync.WaitGroup
}

// boots boots a server each time that its BMC has it boot, and holds its stream until the next time.
func (w *walker) boots(ctx context.Context, o *node) error {
	end := func() {}
	defer func() { end() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.booted:
		}
		end()
		if wait.For(ctx, postTime) != nil {
			return nil
		}
		stream, cancel := context.WithCancel(ctx)
		end = cancel
		if err := w.boot(stream, o); err != nil && ctx.Err() == nil {
			return fmt.Errorf("%s boots: %w", o.name, err)
		}
	}
}

// boot goes from DHCP to the host's stream, which ends with ctx.
func (w *walker) boot(ctx context.Context, o *node) error {
	address, err := w.relay.lease(ctx, o.mac)
	if err != nil {
		return err
	}
	if address != o.address {
		return fmt.Errorf("DHCP gives %s, pinned is %s", address, o.address)
	}
	h := &host{node: o}
	pointer, err := h.script(ctx)
	if err != nil {
		return err
	}
	join, err := h.config(ctx, pointer)
	if err != nil {
		return err
	}
	m, err := api.Get[api.Machine](ctx, w.client, o.name)
	if err != nil {
		return err
	}
	certificate, err := h.join(ctx, join)
	if err != nil {
		return err
	}
	w.streams.Go(func() { h.stream(ctx, certificate, m) })
	return nil
}

// host is a server that boots.
type host struct {
	*node
	roots *x509.CertPool
}

func (h *host) http(certificate *tls.Certificate) *http.Client {
	conf := &tls.Config{RootCAs: h.roots}
	if certificate != nil {
		conf.Certificates = []tls.Certificate{*certificate}
	}
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(h.address, 0))}
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: conf, DialContext: dialer.DialContext}}
}

func (h *host) do(ctx context.Context, method, at, token string, body []byte) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, at, strings.NewReader(string(body)))
	if err != nil {
		return "", err
	}
	req.Header.Set("Accept", "application/vnd.coreos.ignition+json;version=3.5.0, */*;q=0.1")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := h.http(nil).Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, at, resp.Status, raw)
	}
	return string(raw), err
}

// script asks for the boot script until it is let through, and returns where its pointer is.
func (h *host) script(ctx context.Context) (string, error) {
	for {
		text, err := h.do(ctx, http.MethodGet, "http://"+bootdAddress+":8080/ipxe/script?mac="+url.QueryEscape(h.mac), "", nil)
		if err != nil {
			return "", err
		}
		if _, after, ok := strings.Cut(text, "ignition.config.url="); ok {
			return strings.Fields(after)[0], nil
		}
		if err := wait.For(ctx, time.Second); err != nil {
			return "", err
		}
	}
}

// config follows the pointer to the config, as Ignition does, and returns the join token that is in it.
func (h *host) config(ctx context.Context, pointer string) (string, error) {
	text, err := h.do(ctx, http.MethodGet, pointer, "", nil)
	if err != nil {
		return "", err
	}
	var c struct {
		Ignition struct {
			Config struct {
				Replace struct {
					Source      string
					HTTPHeaders []struct{ Name, Value string }
				}
			}
			Security struct {
				TLS struct{ CertificateAuthorities []struct{ Source string } }
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &c); err != nil || len(c.Ignition.Config.Replace.HTTPHeaders) == 0 {
		return "", fmt.Errorf("the pointer is %s", text)
	}
	h.roots = x509.NewCertPool()
	for _, ca := range c.Ignition.Security.TLS.CertificateAuthorities {
		data, err := dataurl.DecodeString(ca.Source)
		if err != nil {
			return "", err
		}
		h.roots.AppendCertsFromPEM(data.Data)
	}
	_, token, _ := strings.Cut(c.Ignition.Config.Replace.HTTPHeaders[0].Value, " ")
	text, err = h.do(ctx, http.MethodGet, c.Ignition.Config.Replace.Source, token, nil)
	if err != nil {
		return "", err
	}
	return tokenIn(text)
}

func tokenIn(config string) (string, error) {
	var c struct {
		Storage struct {
			Files []struct {
				Path     string
				Contents struct{ Source string }
			}
		}
	}
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return "", err
	}
	for _, f := range c.Storage.Files {
		if f.Path == "/etc/rackweft/join-token" {
			content, err := dataurl.DecodeString(f.Contents.Source)
			if err != nil {
				return "", err
			}
			return strings.TrimSpace(string(content.Data)), nil
		}
	}
	return "", errors.New("the config has no join token")
}

func (h *host) join(ctx context.Context, token string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	body, err := json.Marshal(api.JoinRequest{Machine: h.name, CSR: csr, Time: time.Now()})
	if err != nil {
		return nil, err
	}
	text, err := h.do(ctx, http.MethodPost, "https://"+bootdAddress+":8443/v1/join", token, body)
	if err != nil {
		return nil, err
	}
	var answer api.JoinResponse
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(answer.Certificate))
	if block == nil {
		return nil, errors.New("the join gives no certificate")
	}
	return &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}, nil
}

// stream is the host at work: it applies whatever it is sent, and comes back when the stream ends. The first reason is reported.
func (h *host) stream(ctx context.Context, certificate *tls.Certificate, m *api.Machine) {
	for first := true; ctx.Err() == nil; first = false {
		if err := h.once(ctx, certificate, m); err != nil && ctx.Err() == nil && first {
			note("%s: its stream: %v", h.name, err)
		}
		_ = wait.For(ctx, time.Second) // or it is over
	}
}

func (h *host) once(ctx context.Context, certificate *tls.Certificate, m *api.Machine) error {
	ctx, cancel := context.WithCancel(ctx)
	out, in := io.Pipe()
	frames := make(chan api.HostFrame, 1)
	frames <- api.HostFrame{Hello: &api.Hello{UID: m.Metadata.UID, AgentVersion: "bench", Time: time.Now()}}
	var speaker sync.WaitGroup
	speaker.Go(func() { speak(ctx, in, frames) })
	defer func() {
		cancel()
		_ = in.Close()
		speaker.Wait()
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+bootdAddress+":8443/v1/hosts/"+h.name+"/stream", out)
	if err != nil {
		return err
	}
	resp, err := h.http(certificate).Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	from, parts := json.NewDecoder(resp.Body), map[string]api.PartStatus{}
	for {
		var f api.ServerFrame
		if err := from.Decode(&f); err != nil {
			return err
		}
		switch {
		case f.Refused != "":
			return errors.New(f.Refused)
		case f.Part != nil:
			parts[f.Part.Name] = api.PartStatus{Digest: f.Part.Digest, State: api.PartApplied}
		case f.Bookmark != nil:
			status := &api.HostStatus{UID: m.Metadata.UID, AttemptID: m.Status.Attempt.ID, Epoch: f.Bookmark.Epoch, Revision: f.Bookmark.Revision, Parts: maps.Clone(parts)}
			select {
			case frames <- api.HostFrame{Status: status}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// speak sends a host's frames, and pings as nodeagent does, until ctx ends.
func speak(ctx context.Context, to io.Writer, frames <-chan api.HostFrame) {
	ping := time.NewTicker(10 * time.Second)
	defer ping.Stop()
	for {
		var f api.HostFrame
		select {
		case f = <-frames:
		case now := <-ping.C:
			f.Ping = &api.Ping{Time: now.UTC()}
		case <-ctx.Done():
			return
		}
		if json.NewEncoder(to).Encode(f) != nil {
			return // the stream has ended, which its reader tells
		}
	}
}
