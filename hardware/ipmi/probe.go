package ipmi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// capabilitiesRequest is Get Channel Authentication Capabilities (§22.13) for the channel that it comes by, extended
// data of IPMI 2.0, level administrator, as a message outside of sessions (§13.6, §13.8). A BMC answers it without a login.
var capabilitiesRequest = []byte{
	0x06, 0x00, 0xff, 0x07, // RMCP: version 1.0, no acknowledgement, IPMI
	0x00, 0, 0, 0, 0, 0, 0, 0, 0, // no authentication, sequence 0, session 0
	9,
	0x20, 0x18, 0xc8, // to the BMC, netfn application, checksum
	0x81, 0x00, 0x38, 0x8e, 0x04, 0xb5, // from software, sequence 0, command, channel, level, checksum
}

// probe asks the BMC whether it is there until it answers or the limit is over.
func probe(ctx context.Context, address string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "udp", address)
	if err != nil {
		return unreachable(err)
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	for {
		v2, err := ask(conn)
		switch {
		case err == nil && v2:
			return nil
		case err == nil:
			return unsupported("it speaks IPMI 1.5 only, which does not encrypt")
		case !errors.Is(err, os.ErrDeadlineExceeded): // such as connection refused
			return unreachable(err)
		}
		if errors.Is(context.Cause(ctx), context.Canceled) {
			return ctx.Err()
		}
		if ctx.Err() != nil {
			return unreachable(fmt.Errorf("no answer from UDP %s in %s", address, limit))
		}
	}
}

func unreachable(why error) error {
	return fmt.Errorf("%w: %w: check its address, its power, the management network, and that IPMI over LAN is enabled", hardware.ErrUnreachable, why)
}

// ask sends the request once and waits a second for the answer to it.
func ask(conn net.Conn) (v2 bool, err error) {
	if _, err := conn.Write(capabilitiesRequest); err != nil {
		return false, err
	}
	end := time.Now().Add(time.Second)
	buffer := make([]byte, 256)
	for {
		if err := conn.SetReadDeadline(end); err != nil {
			return false, err
		}
		n, err := conn.Read(buffer)
		if err != nil {
			return false, err
		}
		if v2, err := parseCapabilities(buffer[:n]); err == nil {
			return v2, nil
		}
	}
}

// parseCapabilities reports whether the BMC speaks IPMI 2.0.
func parseCapabilities(packet []byte) (v2 bool, err error) {
	const header = 14
	if len(packet) < header+8 || !bytes.Equal(packet[:4], capabilitiesRequest[:4]) || packet[4] != 0 {
		return false, errors.New("no IPMI message outside of sessions")
	}
	body := packet[header:]
	if length := int(packet[header-1]); length > len(body) || length < 8 {
		return false, errors.New("IPMI message is cut short")
	}
	if body[1]>>2 != 0x07 || body[5] != 0x38 {
		return false, errors.New("answer to something else")
	}
	if body[6] != 0 { // a BMC of IPMI 1.5 may refuse the bit that asks for more
		return false, nil
	}
	data := body[7 : int(packet[header-1])-1]
	return len(data) >= 4 && data[1]&0x80 != 0 && data[3]&0x02 != 0, nil
}
