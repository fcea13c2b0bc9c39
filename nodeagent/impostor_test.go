package nodeagent

import (
	"net"
	"strings"
	"testing"
)

// TestImpostor: somebody answers at bootd's address, with a certificate of its
// own CA, while the host joins and again while it holds its stream. It is told
// no join token and no state of the host, and the host goes on with bootd when
// the impostor is gone.
func TestImpostor(t *testing.T) {
	b, evil := newFakeBootd(t), newFakeBootd(t)
	listen := func() net.Listener {
		t.Helper()
		l, err := net.Listen("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	evil.start(nil)
	b.addr = evil.addr
	h := newHost(t, b)
	log, _ := runAgent(t, h)
	const complaint = "is not the bootd of this site"
	log.waitFor(t, complaint)
	evil.stop()
	b.start(listen())
	b.waitFor("it joins and applies its HostSpec", func() bool { return b.joins == 1 && applied(b, "base")() })
	b.stop()

	before := strings.Count(log.String(), complaint)
	evil.start(listen())
	b.waitFor("it refuses the impostor", func() bool { return strings.Count(log.String(), complaint) > before })
	evil.stop()
	b.start(listen())
	b.waitFor("it holds its stream again", func() bool { return b.streams == 2 })
	if evil.joins != 0 || evil.streams != 0 || len(evil.clients) != 0 {
		t.Errorf("the impostor saw %d joins, %d streams, %d certificates of hosts", evil.joins, evil.streams, len(evil.clients))
	}
	if strings.Contains(log.String(), testToken) {
		t.Error("the join token is in the log")
	}
}
