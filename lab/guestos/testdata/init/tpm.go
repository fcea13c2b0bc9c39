package main

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Of TPM 2.0's Part 2 and 3.
const (
	tpmSessions = 0x8002
	tpmOwner    = 0x40000001
	tpmIndex    = 0x01500001
	nvDefine    = 0x12A
	nvWrite     = 0x137
	nvRead      = 0x14E
	// Written and read by the owner; no dictionary attack protection.
	nvAttributes = 1<<1 | 1<<17 | 1<<25
)

// tpm keeps a word in the TPM, or reads it.
func tpm(word string) string {
	// Not os.OpenFile, which makes it non-blocking: then a read that comes before the answer has the length 0.
	fd, err := unix.Open("/dev/tpm0", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err.Error()
	}
	f := os.NewFile(uintptr(fd), "/dev/tpm0")
	defer func() { _ = f.Close() }()
	const size = 16
	if word == "" {
		answer, err := command(f, nvRead, handles(tpmOwner, tpmIndex), u16(u16(nil, size), 0))
		if err != nil {
			return err.Error()
		}
		n := 0
		for body := answer[6:]; n < len(body) && body[n] != 0; n++ {
		}
		return string(answer[6 : 6+n])
	}
	public := u32(nil, tpmIndex)
	public = u32(u16(public, 0xB), nvAttributes) // names are SHA-256
	public = u16(u16(public, 0), size)
	if _, err := command(f, nvDefine, handles(tpmOwner), append(u16(u16(nil, 0), uint16(len(public))), public...)); err != nil {
		return "define: " + err.Error()
	}
	data := append([]byte(word), make([]byte, size-len(word))...)
	_, err = command(f, nvWrite, handles(tpmOwner, tpmIndex), u16(append(u16(nil, size), data...), 0))
	return "ok" + text(err)
}

func u16(b []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(b, v) }
func u32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }

func handles(list ...uint32) (b []byte) {
	for _, h := range list {
		b = u32(b, h)
	}
	return b
}

// command runs one with an empty password and returns its parameters.
func command(f *os.File, code uint32, handles, parameters []byte) ([]byte, error) {
	const password = 0x40000009
	auth := u16(append(u16(u32(nil, password), 0), 0), 0)
	body := append(append(append(handles[:len(handles):len(handles)], u32(nil, uint32(len(auth)))...), auth...), parameters...)
	raw := append(u32(u32(u16(nil, tpmSessions), uint32(10+len(body))), code), body...)
	if _, err := f.Write(raw); err != nil {
		return nil, err
	}
	answer := make([]byte, 4096)
	n, err := f.Read(answer)
	if err != nil || n < 10 {
		return nil, fmt.Errorf("%d bytes: %w", n, err)
	}
	if rc := binary.BigEndian.Uint32(answer[6:]); rc != 0 {
		return nil, fmt.Errorf("TPM error %#x", rc)
	}
	return answer[10:n], nil
}
