package guest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
)

// look is a viewer (RFC 6143): it shakes hands and takes one whole picture.
func lookAt(conn io.ReadWriter) (name string, pixels []byte, err error) {
	var version [12]byte
	if _, err := io.ReadFull(conn, version[:]); err != nil || string(version[:]) != "RFB 003.008\n" {
		return "", nil, fmt.Errorf("it begins with %q: %w", version, err)
	}
	if _, err := conn.Write(version[:]); err != nil {
		return "", nil, err
	}
	security := make([]byte, 2) // one, which is None
	if _, err := io.ReadFull(conn, security); err != nil || !bytes.Equal(security, []byte{1, 1}) {
		return "", nil, fmt.Errorf("its security is %v: %w", security, err)
	}
	const shared = 1
	if _, err := conn.Write([]byte{1, shared}); err != nil {
		return "", nil, err
	}
	var hello struct {
		Result        uint32
		Width, Height uint16
		Format        [16]byte
		Name          uint32
	}
	if err := binary.Read(conn, binary.BigEndian, &hello); err != nil || hello.Result != 0 || hello.Name > 100 {
		return "", nil, fmt.Errorf("it says %+v: %w", hello, err)
	}
	title := make([]byte, hello.Name)
	if _, err := io.ReadFull(conn, title); err != nil {
		return "", nil, err
	}
	request := []byte{3, 0, 0, 0, 0, 0} // a FramebufferUpdateRequest, of everything
	request = binary.BigEndian.AppendUint16(request, hello.Width)
	request = binary.BigEndian.AppendUint16(request, hello.Height)
	if _, err := conn.Write(request); err != nil {
		return "", nil, err
	}
	var update struct {
		Type, _                    byte
		Count, X, Y, Width, Height uint16
		Encoding                   int32
	}
	if err := binary.Read(conn, binary.BigEndian, &update); err != nil || update.Type != 0 || update.Encoding != 0 || update.Width == 0 {
		return "", nil, fmt.Errorf("its update is %+v: %w", update, err)
	}
	pixels = make([]byte, int(update.Width)*int(update.Height)*int(hello.Format[0])/8)
	_, err = io.ReadFull(conn, pixels)
	return string(title), pixels, err
}

// A display is seen through the monitor, by several at once, and nothing listens.
func TestVNC(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.run()
	blind := part("blind", uid2, bare(h), func(p *api.GuestPart) { p.Display = "none" })
	h.want(part("web", uid1, bare(h)), blind)
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	h.wait("it runs", h.is("guest/blind", api.PartApplied, "Running"))
	first, err := h.open(api.ChannelVNC, "web", uid1)
	if err != nil {
		t.Fatal(err)
	}
	h.wait("the firmware's words are seen", func() bool {
		conn, err := h.open(api.ChannelVNC, "web", uid1)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		name, pixels, err := lookAt(conn)
		if err != nil || name != "QEMU (web)" {
			t.Fatalf("its display is %q: %v", name, err)
		}
		return len(pixels) >= 640*400*4 && strings.Trim(string(pixels), "\x00") != ""
	})
	if name, _, err := lookAt(first); err != nil || name != "QEMU (web)" { // it was there all the time
		t.Errorf("another viewer sees %q: %v", name, err)
	}
	if _, err := h.open(api.ChannelVNC, "blind", uid2); err == nil || !strings.Contains(err.Error(), "has no display: set machine: q35") {
		t.Errorf("a Guest without a display: %v", err)
	}

	// The next agent's channel is as good, and QEMU has no socket of its own for it.
	h.stop()
	h.run()
	h.wait("it is adopted", h.is("guest/web", api.PartApplied, "Running"))
	again, err := h.open(api.ChannelVNC, "web", uid1)
	if err != nil {
		t.Fatal(err)
	}
	if name, _, err := lookAt(again); err != nil || name != "QEMU (web)" {
		t.Errorf("after the agent's restart one sees %q: %v", name, err)
	}
	sockets, err := os.ReadDir(h.runDir(uid1))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sockets {
		if strings.Contains(s.Name(), "vnc") {
			t.Errorf("%s listens", s.Name())
		}
	}
	h.want(removed("web", uid1), blind)
	if _, err := io.Copy(io.Discard, first); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the display of a Guest that is gone ends with %v", err)
	}
	if _, err := h.open(api.ChannelVNC, "web", uid1); err == nil {
		t.Error("a Guest that is gone has a display")
	}
}
