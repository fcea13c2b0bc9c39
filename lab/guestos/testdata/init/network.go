package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// farewell is where to go before the power is switched off, Default: nowhere.
var farewell atomic.Pointer[string]

// reach says whether there is anybody at an address.
func reach(address string) string {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(address, "9"), 20*time.Second)
	if err == nil {
		_ = conn.Close()
	}
	if err == nil || errors.Is(err, syscall.ECONNREFUSED) { // it was the address's own answer
		return "ok"
	}
	return err.Error()
}

const namePort = "7"

// serve says a name to whoever calls.
func serve(name string) error {
	listener, err := net.Listen("tcp", ":"+namePort)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(name))
			_ = conn.Close()
		}
	}()
	return nil
}

// call asks whoever has an address for the name.
func call(address string) string {
	const patience = 10 * time.Second
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(address, namePort), patience)
	if err != nil {
		return "nobody"
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	name, err := io.ReadAll(conn)
	return string(name) + text(err)
}

// leave writes its words to the given place.
func leave() error {
	where := farewell.Load()
	if where == nil {
		return nil
	}
	conn, err := net.DialTimeout("tcp", *where, 20*time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprintln(conn, "farewell")
	return err
}
