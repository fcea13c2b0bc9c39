package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/kernel"
)

// rtnl speaks rtnetlink(7) for entries that come by the thousand: it packs many
// messages into one send and requests one acknowledgement, which is ten times as fast
// as a round trip for each. It also supports nexthop objects, which the netlink library
// does not.
type rtnl struct {
	fd    int
	seq   uint32
	reply []byte
}

const (
	batchMessages = 512 // of one send; their errors must fit the receive buffer
	replyBytes    = 1 << 16
	receiveBuffer = 4 << 20
	replyTimeout  = 10 * time.Second
)

// dialRTNL opens a socket in the network namespace ns.
func dialRTNL(ns netns.NsHandle) (*rtnl, error) {
	c := &rtnl{fd: -1, reply: make([]byte, replyBytes)}
	err := within(ns, func() (err error) {
		c.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	timeout := unix.NsecToTimeval(int64(replyTimeout))
	err = errors.Join(
		unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
		unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
	)
	if err != nil {
		c.close()
		return nil, fmt.Errorf("set a netlink socket up: %w", err)
	}
	return c, nil
}

func (c *rtnl) close() { _ = unix.Close(c.fd) }

// message is one request without its header.
type message struct {
	typ   uint16
	flags uint16
	body  []byte
}

// attr appends an attribute to the message.
func (m *message) attr(typ uint16, value []byte) {
	m.body = binary.NativeEndian.AppendUint16(m.body, uint16(unix.SizeofRtAttr+len(value)))
	m.body = binary.NativeEndian.AppendUint16(m.body, typ)
	m.body = append(m.body, value...)
	for len(m.body)%unix.RTA_ALIGNTO != 0 {
		m.body = append(m.body, 0)
	}
}

func (m *message) attr32(typ uint16, value uint32) {
	m.attr(typ, binary.NativeEndian.AppendUint32(nil, value))
}

// append puts the message with its header at the end of b.
func (m message) append(b []byte, seq uint32, flags uint16) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+len(m.body)))
	b = binary.NativeEndian.AppendUint16(b, m.typ)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|m.flags|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // the kernel
	return append(b, m.body...)
}

// do sends the messages in order. It returns one error per message that the kernel
// refused, by the message's index; a refusal does not stop the others. The second
// result is an error of the socket, after which it is unknown what was done.
func (c *rtnl) do(messages []message) (map[int]error, error) {
	refused := map[int]error{}
	var buf []byte
	for begin := 0; begin < len(messages); begin += batchMessages {
		end := min(begin+batchMessages, len(messages))
		buf = buf[:0]
		first := c.seq + 1
		for i := begin; i < end; i++ {
			c.seq++
			var flags uint16
			if i == end-1 {
				flags = unix.NLM_F_ACK // comes last, since the kernel works in order
			}
			buf = messages[i].append(buf, c.seq, flags)
		}
		if err := unix.Sendto(c.fd, buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return refused, fmt.Errorf("send %d netlink messages: %w", end-begin, err)
		}
		err := c.receive(first, c.seq, func(h unix.NlMsghdr, body []byte) (bool, error) {
			if h.Type != unix.NLMSG_ERROR || len(body) < 4 {
				return false, nil
			}
			if errno := -int32(binary.NativeEndian.Uint32(body)); errno != 0 {
				refused[begin+int(h.Seq-first)] = unix.Errno(errno)
			}
			return h.Seq == c.seq, nil
		})
		if err != nil {
			return refused, err
		}
	}
	return refused, nil
}

// dump requests a list and calls each with every message of the answer, whose body is
// valid only during the call. A list that changed meanwhile is requested again: begin
// is called before each attempt.
func (c *rtnl) dump(m message, begin func(), each func(body []byte)) error {
	_, err := kernel.List(func() (struct{}, error) {
		begin()
		return struct{}{}, c.dumpOnce(m, each)
	})
	return err
}

func (c *rtnl) dumpOnce(m message, each func(body []byte)) error {
	c.seq++
	if err := unix.Sendto(c.fd, m.append(nil, c.seq, unix.NLM_F_DUMP), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("request a netlink dump: %w", err)
	}
	interrupted := false
	err := c.receive(c.seq, c.seq, func(h unix.NlMsghdr, body []byte) (bool, error) {
		interrupted = interrupted || h.Flags&unix.NLM_F_DUMP_INTR != 0
		switch h.Type {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if errno := -int32(binary.NativeEndian.Uint32(body)); errno > 0 {
					return true, fmt.Errorf("netlink dump: %w", unix.Errno(errno))
				}
			}
			return true, nil
		}
		each(body)
		return false, nil
	})
	if err == nil && interrupted {
		return netlink.ErrDumpInterrupted
	}
	return err
}

// receive passes the replies to requests first to last to take, until take reports the
// last one. Replies to earlier requests that were given up are skipped.
func (c *rtnl) receive(first, last uint32, take func(unix.NlMsghdr, []byte) (bool, error)) error {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.reply, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive from netlink: %w", err)
		}
		done, err := eachMessage(c.reply[:n], func(h unix.NlMsghdr, body []byte) (bool, error) {
			if h.Seq-first > last-first {
				return false, nil
			}
			return take(h, body)
		})
		if done || err != nil {
			return err
		}
	}
}

// eachMessage walks over the messages in b.
func eachMessage(b []byte, take func(unix.NlMsghdr, []byte) (bool, error)) (bool, error) {
	for len(b) >= unix.SizeofNlMsghdr {
		h := unix.NlMsghdr{
			Len: binary.NativeEndian.Uint32(b), Type: binary.NativeEndian.Uint16(b[4:]),
			Flags: binary.NativeEndian.Uint16(b[6:]), Seq: binary.NativeEndian.Uint32(b[8:]),
		}
		if h.Len < unix.SizeofNlMsghdr || int64(h.Len) > int64(len(b)) {
			return false, fmt.Errorf("netlink message of %d bytes in %d: cut short", h.Len, len(b))
		}
		if done, err := take(h, b[unix.SizeofNlMsghdr:h.Len]); done || err != nil {
			return done, err
		}
		b = b[min(align4(int(h.Len)), len(b)):]
	}
	return false, nil
}

// eachAttr walks over the attributes in b; a malformed one ends the walk.
func eachAttr(b []byte, take func(typ uint16, value []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		n, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if n < unix.SizeofRtAttr || n > len(b) {
			return
		}
		take(typ&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofRtAttr:n])
		b = b[min(align4(n), len(b)):]
	}
}

func align4(n int) int { return (n + 3) &^ 3 }

func toUint32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func toAddr(b []byte) netip.Addr {
	addr, _ := netip.AddrFromSlice(b)
	return addr.Unmap()
}
