package lab

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/rackweft/rackweft/internal/wait/waittest"
	"github.com/rackweft/rackweft/lab/bmc"
)

func TestSharedBMCs(t *testing.T) {
	machine := func(unit int, b BMCConfig) MachineConfig {
		return MachineConfig{Name: "m" + string(rune('0'+unit)), Unit: unit, Firmware: BIOS, BMC: b}
	}
	tests := []struct {
		name     string
		machines []MachineConfig
		ids      []string
		refused  string
	}{
		{"own", []MachineConfig{machine(1, BMCConfig{}), machine(2, BMCConfig{})}, []string{"1", "1"}, ""},
		{"shared", []MachineConfig{machine(1, BMCConfig{}), machine(2, BMCConfig{Unit: 1}), machine(3, BMCConfig{Unit: 1})}, []string{"1", "2", "3"}, ""},
		{"named", []MachineConfig{machine(1, BMCConfig{SystemID: "System_0", Helper: "HGX"}), machine(2, BMCConfig{Unit: 1, SystemID: "System_1"})}, []string{"System_0", "System_1"}, ""},
		{"owner later", []MachineConfig{machine(2, BMCConfig{Unit: 1}), machine(1, BMCConfig{})}, []string{"1", "2"}, ""},
		{"nobody's", []MachineConfig{machine(1, BMCConfig{Unit: 7})}, nil, "unit 7 has no BMC"},
		{"in a chain", []MachineConfig{machine(1, BMCConfig{}), machine(2, BMCConfig{Unit: 1}), machine(3, BMCConfig{Unit: 2})}, nil, "unit 2 has no BMC"},
		{"twice", []MachineConfig{machine(1, BMCConfig{SystemID: "A"}), machine(2, BMCConfig{Unit: 1, SystemID: "A"})}, nil, `two systems "A"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Config{Name: "t", Dir: "/tmp", Machines: tt.machines}
			err := c.complete()
			if tt.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refused) {
					t.Fatalf("%v, want %q", err, tt.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for i, m := range c.Machines {
				if m.BMC.SystemID != tt.ids[i] {
					t.Errorf("%s is system %q, want %q", m.Name, m.BMC.SystemID, tt.ids[i])
				}
				if want := net.IPv4(198, 18, 1, byte(10+m.bmcUnit())); !m.BMCAddress().Equal(want) {
					t.Errorf("%s: its BMC is at %s, want %s", m.Name, m.BMCAddress(), want)
				}
			}
		})
	}
}

// Two machines and a helper behind one BMC, each powered on its own.
func TestMachinesShareABMC(t *testing.T) {
	r := newRack(t, func(c *Config) {
		c.Machines = []MachineConfig{
			{Name: "m1", Unit: 1, Firmware: BIOS, MemoryMiB: 256, BMC: BMCConfig{Helper: "HGX_Baseboard_0", SystemID: "System_0"}},
			{Name: "m2", Unit: 2, Firmware: BIOS, MemoryMiB: 256, BMC: BMCConfig{Unit: 1, SystemID: "System_1"}},
		}
	})
	first, second := r.Machine("m1"), r.Machine("m2")
	if first.BMC() != second.BMC() {
		t.Fatal("each has a BMC of its own")
	}
	const path = "/redfish/v1/Systems/System_1"
	if status, answer := redfish(t, r, second, "POST", path+"/Actions/ComputerSystem.Reset", `{"ResetType":"On"}`); status != 204 {
		t.Fatalf("status %d: %v", status, answer)
	}
	waitConsole(t, second, 0, "SeaBIOS")
	if first.current() != nil {
		t.Error("the first machine is on too")
	}
	_, body := redfish(t, r, first, "GET", path, "")
	if body["PowerState"] != "On" || body["SerialNumber"] != "RWLAB-m2" || body["LastResetTime"] == nil {
		t.Errorf("System_1 is %v, %v, last reset %v", body["PowerState"], body["SerialNumber"], body["LastResetTime"])
	}
	if status, _ := redfish(t, r, first, "POST", "/redfish/v1/Systems/HGX_Baseboard_0/Actions/ComputerSystem.Reset", `{"ResetType":"On"}`); status != 404 {
		t.Errorf("a reset of the helper: status %d", status)
	}
}

// screen collects what an SSH client shows.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *screen) shows(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Contains(plainText(s.text.Bytes()), []byte(text))
}

// The firmware's words come out of the BMC's SSH service, from a server that
// was off when the console was opened.
func TestConsoleOverSSH(t *testing.T) {
	r := newRack(t, func(c *Config) {
		c.Machines = []MachineConfig{{Name: "m1", Unit: 1, Firmware: BIOS, MemoryMiB: 256,
			BMC: BMCConfig{Console: bmc.Console{Access: bmc.BySSH, Style: bmc.ILO}}}}
	})
	m := r.Machine("m1")
	key, err := m.BMC().HostKey()
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(m.Config().BMCAddress().String(), "22")
	conn, err := r.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	secure, channels, requests, err := ssh.NewClientConn(conn, address, &ssh.ClientConfig{User: BMCUser,
		Auth: []ssh.AuthMethod{ssh.Password(r.BMCPassword())}, HostKeyCallback: ssh.FixedHostKey(key)})
	if err != nil {
		t.Fatal(err)
	}
	client := ssh.NewClient(secure, channels, requests)
	defer func() { _ = client.Close() }()
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	shown := &screen{}
	session.Stdout = shown
	keys, err := session.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Start("vsp"); err != nil {
		t.Fatal(err)
	}
	waittest.Until(t, 10*time.Second, "the console is open", func() bool { return shown.shows("Virtual Serial Port Active") })
	resetType(t, r, m, "On", 204)
	// On a busy machine the BMC's console is attached to the new QEMU later than the firmware speaks; at a reset it is there.
	begun, reset := time.Now(), time.Now()
	waittest.Until(t, 4*time.Minute, "the firmware's words", func() bool {
		if time.Since(begun) > 20*time.Second && time.Since(reset) > 20*time.Second {
			reset = time.Now()
			resetType(t, r, m, "ForceRestart", 204)
		}
		return shown.shows("SeaBIOS")
	})
	if _, err := keys.Write([]byte("\x1b(")); err != nil {
		t.Fatal(err)
	}
	if err := session.Wait(); err != nil {
		t.Error(err)
	}
}
