package sshconsole

import (
	"net"
	"time"
)

const (
	flowLimit = 16 << 10    // that the BMC may send before the console's reader has taken all of it
	flowPause = time.Second // after which it may send as much again, taken or not
)

// flow holds back what a BMC sends faster than the console is read. x/crypto/ssh would keep 2 MiB of each console, which
// hundreds of consoles that all print at once make of it.
type flow struct {
	net.Conn
	taken chan struct{} // signalled when the console's reader has taken all that came
	came  int           // since then: of Read alone
}

// Read implements io.Reader. The pause ends the wait where what came was no output, such as keepalives and key exchanges.
func (f *flow) Read(p []byte) (int, error) {
	if f.came >= flowLimit {
		pause := time.NewTimer(flowPause)
		select {
		case <-f.taken:
		case <-pause.C:
		}
		pause.Stop()
		f.came = 0
	}
	n, err := f.Conn.Read(p[:min(len(p), flowLimit)])
	f.came += n
	return n, err
}

func (f *flow) allTaken() {
	select {
	case f.taken <- struct{}{}:
	default:
	}
}
