package dhcp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

// serverDUID is the same on every host, so that a guest that moved can renew with its
// new host.
func serverDUID() dhcpv6.DUID {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{0x02, 0x00, 0xa9, 0xfe, 0x01, 0x01}}
}

// answer6 answers a DHCPv6 message from a MAC, as answer4 does.
func (t *table) answer6(from MAC, b []byte) ([]byte, error) {
	g, known := t.byMAC[from]
	if !known {
		return nil, errNotServed
	}
	addrs := g.addresses6()
	if len(addrs) == 0 {
		return nil, errors.New("the guest has no IPv6 address")
	}
	req, err := dhcpv6.MessageFromBytes(b)
	if err != nil {
		return nil, fmt.Errorf("cannot parse it: %w", err)
	}
	if !valid6(req) {
		return nil, nil
	}
	r := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: req.TransactionID}
	r.AddOption(dhcpv6.OptServerID(serverDUID()))
	if id := req.Options.ClientID(); id != nil {
		r.AddOption(dhcpv6.OptClientID(id))
	}
	switch req.MessageType {
	case dhcpv6.MessageTypeSolicit:
		if req.GetOneOption(dhcpv6.OptionRapidCommit) == nil {
			r.MessageType = dhcpv6.MessageTypeAdvertise
		} else {
			r.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
		}
		addLeases6(r, req, addrs)
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		addLeases6(r, req, addrs)
	case dhcpv6.MessageTypeConfirm:
		if !confirm6(r, req, addrs) {
			return nil, nil
		}
	case dhcpv6.MessageTypeRelease:
		addStatus(r, iana.StatusSuccess, "a guest keeps its address")
	case dhcpv6.MessageTypeDecline:
		addStatus(r, iana.StatusSuccess, "")
		return r.ToBytes(), fmt.Errorf("it declines %s: something else has it", addrs)
	case dhcpv6.MessageTypeInformationRequest:
	default:
		return nil, nil
	}
	t.tell6(r)
	return r.ToBytes(), nil
}

// valid6 reports whether a message has the required identifiers, and no forbidden ones
// (RFC 8415 §16).
func valid6(m *dhcpv6.Message) bool {
	client, server := m.Options.ClientID(), m.Options.ServerID()
	if server != nil && !serverDUID().Equal(server) {
		return false
	}
	switch m.MessageType {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		return client != nil && server == nil
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		return client != nil && server != nil
	}
	return m.MessageType == dhcpv6.MessageTypeInformationRequest
}

// addLeases6 gives the guest's addresses to the first IA of the request, and revokes
// all other addresses in it (lifetime 0, RFC 8415 §18.3.4).
func addLeases6(r, req *dhcpv6.Message, addrs []netip.Addr) {
	for i, ia := range req.Options.IANA() {
		out := &dhcpv6.OptIANA{IaId: ia.IaId}
		given := addrs
		if i > 0 {
			given = nil
			out.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail, StatusMessage: "a guest has one interface here"})
		} else {
			out.T1, out.T2 = renewTime, rebindTime
		}
		for _, a := range given {
			out.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice(), PreferredLifetime: leaseTime, ValidLifetime: leaseTime})
		}
		for _, old := range ia.Options.Addresses() {
			if !contains(given, old.IPv6Addr) && req.MessageType != dhcpv6.MessageTypeSolicit {
				out.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: old.IPv6Addr})
			}
		}
		r.AddOption(out)
	}
	for _, pd := range req.Options.IAPD() {
		out := &dhcpv6.OptIAPD{IaId: pd.IaId}
		out.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoPrefixAvail})
		r.AddOption(out)
	}
}

// confirm6 answers whether the addresses in a Confirm are the client's; without any
// there is no answer (RFC 8415 §18.3.3).
func confirm6(r, req *dhcpv6.Message, addrs []netip.Addr) bool {
	named := 0
	for _, ia := range req.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			named++
			if !contains(addrs, a.IPv6Addr) {
				addStatus(r, iana.StatusNotOnLink, fmt.Sprintf("the address of this guest is %s", addrs[0]))
				return true
			}
		}
	}
	addStatus(r, iana.StatusSuccess, "")
	return named > 0
}

// tell6 adds the options of every answer.
func (t *table) tell6(r *dhcpv6.Message) {
	r.AddOption(dhcpv6.OptDNS(Gateway6().AsSlice()))
	if t.Domain != "" {
		r.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: []string{t.Domain}}))
	}
}

func addStatus(r *dhcpv6.Message, code iana.StatusCode, text string) {
	r.AddOption(&dhcpv6.OptStatusCode{StatusCode: code, StatusMessage: text})
}

func contains(addrs []netip.Addr, ip net.IP) bool {
	for _, a := range addrs {
		if isAddr(ip, a) {
			return true
		}
	}
	return false
}
