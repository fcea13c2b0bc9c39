package receipt

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"
)

// pair connects two ends; far's receive buffer is small.
func pair(t *testing.T) (near *Conn, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.Close(), a.Close() })
	far = c.(*net.TCPConn)
	return Of(new(Conns).Context(t.Context(), a)), far
}

func TestArrived(t *testing.T) {
	near, _ := pair(t)
	for range 3 { // on one connection, which is kept
		mark := near.Mark()
		if _, err := near.conn.Write([]byte("pointer")); err != nil {
			t.Fatal(err)
		}
		if !mark.Arrived(t.Context()) {
			t.Error("what the other end's kernel has is not seen to have arrived")
		}
	}
}

// fill writes until all buffers are full.
func fill(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	for err := error(nil); err == nil; {
		_, err = c.Write(make([]byte, 1<<20))
	}
	if err := c.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
}

// TestNotArrived: the other end takes nothing more, or is gone.
func TestNotArrived(t *testing.T) {
	near, far := pair(t)
	fill(t, near.conn)
	mark := near.Mark()
	if err := near.conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, _ = near.conn.Write([]byte("config"))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if mark.Arrived(ctx) {
		t.Error("what is in the own kernel, or not even there, counts as arrived")
	}
	if err := far.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := far.Close(); err != nil { // a reset
		t.Fatal(err)
	}
	if mark.Arrived(ctx) {
		t.Error("what a reset connection never took counts as arrived")
	}
}

// TestGoneBefore: nothing can be written any more.
func TestGoneBefore(t *testing.T) {
	near, far := pair(t)
	if err := far.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := far.Close(); err != nil {
		t.Fatal(err)
	}
	_, _ = near.conn.Read(make([]byte, 1)) // the reset is here
	mark := near.Mark()
	if _, err := near.conn.Write([]byte("config")); err == nil {
		t.Fatal("it was written")
	}
	if mark.Arrived(t.Context()) {
		t.Error("what was never written counts as arrived")
	}
}

// TestTakenInPart: the other end reads some of it and resets the connection.
func TestTakenInPart(t *testing.T) {
	near, far := pair(t)
	mark := near.Mark()
	fill(t, near.conn)
	if _, err := far.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := far.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := far.Close(); err != nil {
		t.Fatal(err)
	}
	_, _ = near.conn.Read(make([]byte, 1))
	if !mark.Arrived(t.Context()) {
		t.Error("what came through in part counts as not arrived")
	}
}

func TestArrivedThroughTLS(t *testing.T) {
	near, far := pair(t)
	server := tls.Server(near.conn, &tls.Config{Certificates: []tls.Certificate{certificate(t)}})
	wrapped := Of(new(Conns).Context(t.Context(), server))
	go func() {
		c := tls.Client(far, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // its own end
		_, _ = c.Read(make([]byte, 1))
	}()
	if err := server.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	mark := wrapped.Mark()
	if mark.err != nil {
		t.Fatal(mark.err)
	}
	if _, err := server.Write(bytes.Repeat([]byte("x"), 100)); err != nil {
		t.Fatal(err)
	}
	if !mark.Arrived(t.Context()) {
		t.Error("not arrived")
	}
}

func TestUnknownCounts(t *testing.T) {
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	if !Of(new(Conns).Context(t.Context(), a)).Mark().Arrived(t.Context()) || !Of(t.Context()).Mark().Arrived(t.Context()) {
		t.Error("where nobody can tell, it is to count as arrived")
	}
}

func TestNames(t *testing.T) {
	var c Conns
	a, b := Of(c.Context(t.Context(), nil)), Of(c.Context(t.Context(), nil))
	if a.ID() == b.ID() || a.ID() == "" || Of(t.Context()).ID() != "" {
		t.Errorf("%q, %q", a.ID(), b.ID())
	}
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
