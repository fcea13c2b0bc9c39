package sshconsole

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
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
	lost  atomic.Bool   // the BMC answers nothing, not that the connection is gone either
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
	if unanswered(err) {
		f.lost.Store(true)
	}
	return n, err
}

func (f *flow) allTaken() {
	select {
	case f.taken <- struct{}{}:
	default:
	}
}

// unanswered reports whether a connection failed without a word of the other side.
func unanswered(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}
