package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"unicode/utf16"

	"github.com/google/uuid"
)

// bootVariables adds what a BMC's HttpBootUri means to an empty OVMF variable
// store: a boot option for that URL on the provisioning NIC, and BootNext that
// refers to it (UEFI 2.10 §3.1.3, §10.3.4.23; the store is EDK II's
// MdeModulePkg/Include/Guid/VariableFormat.h).
func bootVariables(store []byte, mac net.HardwareAddr, url string) ([]byte, error) {
	// gEfiAuthenticatedVariableGuid starts the store; its header has 28 bytes.
	signature := efiGUID("aaf32c78-947b-439a-a180-2e144ec37792")
	start := bytes.Index(store, signature)
	if start < 0 || start+28 > len(store) {
		return nil, errors.New("no variable store in OVMF's file of variables")
	}
	size := int(binary.LittleEndian.Uint32(store[start+16:]))
	if size < 28 || size > len(store)-start {
		return nil, fmt.Errorf("OVMF's variable store of %d bytes is larger than its file", size)
	}
	free, err := freeSpace(store[start : start+size])
	if err != nil {
		return nil, err
	}
	const number = 0x0080
	var added []byte
	added = appendVariable(added, "Boot0080", loadOption("HTTP boot by the BMC", httpDevicePath(mac, url)))
	added = appendVariable(added, "BootNext", binary.LittleEndian.AppendUint16(nil, number))
	if free+len(added) > size {
		return nil, errors.New("OVMF's variable store is full")
	}
	result := bytes.Clone(store)
	copy(result[start+free:], added)
	return result, nil
}

// variableHeader is AUTHENTICATED_VARIABLE_HEADER.
type variableHeader struct {
	StartID            uint16
	State, Reserved    uint8
	Attributes         uint32
	MonotonicCount     uint64
	TimeStamp          [16]byte
	PubKeyIndex        uint32
	NameSize, DataSize uint32
	VendorGUID         [16]byte
}

const (
	variableStart  = 0x55aa
	variableAdded  = 0x3f
	headerSize     = 60
	firstVariable  = 28
	bootAttributes = 7 // non-volatile, boot services, runtime
)

// freeSpace returns the offset after the existing variables.
func freeSpace(store []byte) (int, error) {
	at := firstVariable
	for at+headerSize <= len(store) {
		var h variableHeader
		if _, err := binary.Decode(store[at:], binary.LittleEndian, &h); err != nil {
			return 0, err
		}
		if h.StartID != variableStart {
			return at, nil
		}
		next := int64(at) + headerSize + int64(h.NameSize) + int64(h.DataSize)
		if next > int64(len(store)) {
			return 0, errors.New("a variable reaches beyond OVMF's variable store")
		}
		at = int(next+3) &^ 3
	}
	return 0, errors.New("OVMF's variable store is full")
}

func appendVariable(to []byte, name string, data []byte) []byte {
	encoded := utf16Bytes(name)
	h := variableHeader{StartID: variableStart, State: variableAdded, Attributes: bootAttributes,
		NameSize: uint32(len(encoded)), DataSize: uint32(len(data))}
	copy(h.VendorGUID[:], efiGUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")) // EFI_GLOBAL_VARIABLE
	to, _ = binary.Append(to, binary.LittleEndian, h)                      // a struct of fixed size never fails
	to = append(append(to, encoded...), data...)
	for len(to)%4 != 0 {
		to = append(to, 0xff)
	}
	return to
}

// loadOption is EFI_LOAD_OPTION, active.
func loadOption(description string, path []byte) []byte {
	option := binary.LittleEndian.AppendUint32(nil, 1)
	option = binary.LittleEndian.AppendUint16(option, uint16(len(path)))
	return append(append(option, utf16Bytes(description)...), path...)
}

// httpDevicePath is PciRoot(0)/Pci(3,0)/MAC(mac,1)/IPv4(DHCP)/Uri(url): the NIC
// at its address in qemuArguments.
func httpDevicePath(mac net.HardwareAddr, url string) []byte {
	var path []byte
	node := func(kind, sub byte, data []byte) {
		path = append(path, kind, sub)
		path = binary.LittleEndian.AppendUint16(path, uint16(4+len(data)))
		path = append(path, data...)
	}
	node(2, 1, []byte{0xd0, 0x41, 0x03, 0x0a, 0, 0, 0, 0}) // PNP0A03, unit 0
	node(1, 1, []byte{0, 3})
	address := make([]byte, 33)
	copy(address, mac)
	address[32] = 1 // Ethernet
	node(3, 11, address)
	node(3, 12, make([]byte, 23))
	node(3, 24, []byte(url))
	node(0x7f, 0xff, nil)
	return path
}

func utf16Bytes(s string) []byte {
	var encoded []byte
	for _, unit := range append(utf16.Encode([]rune(s)), 0) {
		encoded = binary.LittleEndian.AppendUint16(encoded, unit)
	}
	return encoded
}

// efiGUID returns a GUID in UEFI's form: the first three fields little-endian.
func efiGUID(text string) []byte {
	id := uuid.MustParse(text)
	return []byte{id[3], id[2], id[1], id[0], id[5], id[4], id[7], id[6], id[8], id[9], id[10], id[11], id[12], id[13], id[14], id[15]}
}
