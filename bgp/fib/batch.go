package fib

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	batchRoutes   = 512 // per send; their errors must fit the receive buffer
	receiveBuffer = 4 << 20
	replyTimeout  = 10 * time.Second
)

// batch changes many routes at once: it sends them together with one
// acknowledgement, where the netlink library waits for each.
type batch struct {
	socket *nl.NetlinkSocket
}

func openBatch() (*batch, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	timeout := unix.NsecToTimeval(int64(replyTimeout))
	err = errors.Join(
		s.SetReceiveTimeout(&timeout),
		s.SetReceiveBufferSize(receiveBuffer, true),
		unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1), // errors do not repeat the request
	)
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("set netlink up: %w", err)
	}
	return &batch{s}, nil
}

// do sends the requests in order, and calls done for each with the kernel's
// answer: a refusal does not stop the others. An error means that the socket
// failed: the result is then unknown for requests without a call of done.
func (b *batch) do(requests []*nl.NetlinkRequest, done func(i int, err error)) error {
	for begin := 0; begin < len(requests); begin += batchRoutes {
		some := requests[begin:min(begin+batchRoutes, len(requests))]
		refused, err := b.send(some)
		if err != nil {
			return err
		}
		for i, r := range some {
			done(begin+i, refused[r.Seq])
		}
	}
	return nil
}

// send returns the errors by sequence number.
func (b *batch) send(requests []*nl.NetlinkRequest) (map[uint32]error, error) {
	last := requests[len(requests)-1]
	last.Flags |= unix.NLM_F_ACK // the kernel works in order, so its acknowledgement comes last
	var buf []byte
	for _, r := range requests {
		buf = append(buf, r.Serialize()...)
	}
	if err := unix.Sendto(b.socket.GetFd(), buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send %d routes to the kernel: %w", len(requests), err)
	}
	refused := map[uint32]error{}
	for {
		messages, _, err := b.socket.Receive()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("receive the kernel's answers for %d routes: %w", len(requests), err)
		}
		for _, m := range messages {
			if m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < 4 {
				continue
			}
			if errno := -int32(binary.NativeEndian.Uint32(m.Data)); errno != 0 {
				refused[m.Header.Seq] = unix.Errno(errno)
			}
			if m.Header.Seq == last.Seq {
				return refused, nil
			}
		}
	}
}

func (b *batch) close() { b.socket.Close() }

// request builds a change of our route k with the hops h, or regardless of its
// hops.
func (f *FIB) request(typ, flags int, k key, h hops) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(typ, flags)
	r.Flags = uint16(unix.NLM_F_REQUEST | flags)
	family, addr := uint8(unix.AF_INET6), k.prefix.Addr()
	if addr.Is4() {
		family = unix.AF_INET
	}
	m := &nl.RtMsg{RtMsg: unix.RtMsg{Family: family, Dst_len: uint8(k.prefix.Bits()), Protocol: Protocol, Table: unix.RT_TABLE_UNSPEC}}
	r.AddData(m)
	r.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(f.options.Table))))
	r.AddData(nl.NewRtAttr(unix.RTA_DST, addr.AsSlice()))
	r.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(k.metric))))
	if typ == unix.RTM_DELROUTE {
		m.Scope = unix.RT_SCOPE_NOWHERE // any scope
		return r
	}
	h.write(m, r, f.options.OnLink)
	return r
}

// write adds the hops to the message.
func (h hops) write(m *nl.RtMsg, r *nl.NetlinkRequest, onLink bool) {
	m.Scope, m.Type = unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST
	var flags uint8
	if onLink {
		flags = unix.RTNH_F_ONLINK
	}
	switch len(h) {
	case 0:
		m.Type = unix.RTN_BLACKHOLE
	case 1:
		m.Flags |= uint32(flags)
		r.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, h[0].gateway.AsSlice()))
		r.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(h[0].link))))
	default:
		var all []byte
		for _, one := range h {
			next := &nl.RtNexthop{RtNexthop: unix.RtNexthop{Ifindex: int32(one.link), Flags: flags},
				Children: []nl.NetlinkRequestData{nl.NewRtAttr(unix.RTA_GATEWAY, one.gateway.AsSlice())}}
			all = append(all, next.Serialize()...)
		}
		r.AddData(nl.NewRtAttr(unix.RTA_MULTIPATH, all))
	}
}
