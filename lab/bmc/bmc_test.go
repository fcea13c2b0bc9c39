package bmc_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bmc-toolbox/bmclib/v2"
	"github.com/go-logr/logr"
	"github.com/stmcginnis/gofish"
	"golang.org/x/net/websocket"

	"github.com/rackweft/rackweft/internal/wait/waittest"
	"github.com/rackweft/rackweft/lab/bmc"
)

// fakeMachine is a server without a server: its power is a variable, its console an echo.
type fakeMachine struct {
	mu       sync.Mutex
	notify   func(bmc.Event)
	power    bmc.Power
	override bmc.Override
	tag      string
	booted   []bmc.Target // what each boot was told to use
	buttons  int
}

func (m *fakeMachine) Power() bmc.Power {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.power
}

func (m *fakeMachine) Override() bmc.Override {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.override
}

func (m *fakeMachine) SetOverride(_ context.Context, o bmc.Override) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.override = o
	return nil
}

func (m *fakeMachine) AssetTag() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tag
}

func (m *fakeMachine) SetAssetTag(tag string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tag = tag
}

func (m *fakeMachine) become(power bmc.Power, e bmc.EventKind) error {
	m.mu.Lock()
	m.power = power
	target := m.override.Target
	if e != bmc.PoweredOff {
		m.booted = append(m.booted, m.override.Target)
		if m.override.Once {
			m.override = bmc.Override{Target: bmc.None}
		}
	}
	m.mu.Unlock()
	m.notify(bmc.Event{Kind: e, Target: target, Cause: "the test"})
	return nil
}

func (m *fakeMachine) PowerOn(context.Context) error  { return m.become(bmc.On, bmc.PoweredOn) }
func (m *fakeMachine) PowerOff(context.Context) error { return m.become(bmc.Off, bmc.PoweredOff) }
func (m *fakeMachine) Reset(context.Context) error    { return m.become(bmc.On, bmc.Reset) }
func (m *fakeMachine) NMI(context.Context) error      { return nil }

func (m *fakeMachine) PressButton(context.Context) error {
	m.mu.Lock()
	m.buttons++
	m.mu.Unlock()
	return nil
}

func (m *fakeMachine) DialConsole(context.Context) (net.Conn, error) {
	if m.Power() == bmc.Off {
		return nil, bmc.ErrOff
	}
	a, b := net.Pipe()
	go func() { // ends with the pipe
		defer func() { _ = b.Close() }()
		_, _ = io.Copy(b, b)
	}()
	return a, nil
}

const password = "correct-horse"

// serve runs a BMC on loopback for the length of the test.
func serve(t *testing.T, change func(*bmc.Config)) (*bmc.Server, *fakeMachine, string) {
	t.Helper()
	machine := &fakeMachine{power: bmc.Off}
	config := bmc.Config{
		Dir: t.TempDir(), Address: net.IPv4(127, 0, 0, 1), Username: "admin", Password: password,
		Systems: []bmc.SystemConfig{{Machine: machine, Inventory: bmc.Inventory{
			UUID: "6ba7b810-9dad-11d1-80b4-00c04fd430c8", Serial: "SER1", SKU: "LAB-1", Manufacturer: "Rackweft", Model: "Lab Server",
			BIOSVersion: "OVMF", Firmware: bmc.UEFI, CPUs: 2, CPUModel: "QEMU virtual CPU", MemoryMiB: 2048,
			NICs:       []bmc.NIC{{Name: "NIC 1", MAC: "52:54:00:01:01:00"}, {Name: "NIC 2", MAC: "52:54:00:01:01:01"}},
			DiskSerial: "rackdata", DiskBytes: 8 << 30,
		}}},
	}
	if change != nil {
		change(&config)
	}
	server, err := bmc.New(config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	machine.notify = server.Notify
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return server, machine, listener.Addr().String()
}

// library opens a bmclib client with nothing but its Redfish driver.
func library(t *testing.T, address, password string) (*bmclib.Client, error) {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	c := bmclib.NewClient(host, "admin", password, bmclib.WithLogger(logr.Discard()), bmclib.WithRedfishPort(port))
	c.Registry.Drivers = c.Registry.Using("redfish")
	if len(c.Registry.Drivers) == 0 {
		t.Fatal("bmclib has no Redfish driver")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.Open(ctx); err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) }) // the BMC may be gone by then
	return c, nil
}

func TestBmclib(t *testing.T) {
	_, machine, address := serve(t, nil)
	c, err := library(t, address, password)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	wantPower := func(want string) {
		t.Helper()
		got, err := c.GetPowerState(ctx)
		if err != nil || !strings.EqualFold(got, want) {
			t.Fatalf("power state %q, %v; want %s", got, err, want)
		}
	}
	wantPower("off")
	for _, persistent := range []bool{false, true} {
		if ok, err := c.SetBootDevice(ctx, "pxe", persistent, true); !ok || err != nil {
			t.Fatalf("boot device: %v, %v", ok, err)
		}
		override, err := c.GetBootDeviceOverride(ctx)
		if err != nil || override.Device != "pxe" || override.IsPersistent != persistent || !override.IsEFIBoot {
			t.Fatalf("override %+v, %v; want pxe, persistent %v, EFI", override, err, persistent)
		}
	}
	// bmclib tries again without the mode, so the wrong one must not be an obstacle.
	if ok, err := c.SetBootDevice(ctx, "pxe", false, false); !ok || err != nil {
		t.Fatalf("boot device in legacy mode: %v, %v", ok, err)
	}
	if ok, err := c.SetPowerState(ctx, "on"); !ok || err != nil {
		t.Fatalf("power on: %v, %v", ok, err)
	}
	wantPower("on")
	if got := machine.booted; len(got) != 1 || got[0] != bmc.Pxe {
		t.Errorf("booted from %v, want Pxe once", got)
	}
	if o := machine.Override(); o.Target != bmc.None {
		t.Errorf("the override is %v after the boot, want none: it was for one boot", o)
	}
	for _, action := range []string{"reset", "cycle", "off"} {
		if ok, err := c.SetPowerState(ctx, action); !ok || err != nil {
			t.Fatalf("%s: %v, %v", action, ok, err)
		}
	}
	wantPower("off")

	device, err := c.Inventory(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if device.Vendor != "Rackweft" || device.Model != "Lab Server" || device.Serial != "SER1" {
		t.Errorf("inventory of %s %s %s, want Rackweft Lab Server SER1", device.Vendor, device.Model, device.Serial)
	}
	if device.BIOS == nil || device.BIOS.Firmware.Installed != "OVMF" || device.BMC == nil || device.BMC.Firmware.Installed != "1.0.0" {
		t.Errorf("firmware: BIOS %+v, BMC %+v", device.BIOS, device.BMC)
	}
	var macs []string
	for _, n := range device.NICs {
		for _, p := range n.NICPorts {
			macs = append(macs, p.MacAddress)
		}
	}
	slices.Sort(macs) // gofish reads a collection in no order
	if got := strings.Join(macs, " "); got != "52:54:00:01:01:00 52:54:00:01:01:01" {
		t.Errorf("MACs %s", got)
	}
	if len(device.CPUs) != 1 || device.CPUs[0].Cores != 2 || len(device.Memory) != 1 || device.Memory[0].SizeBytes == 0 {
		t.Errorf("%d CPUs, %d DIMMs: %+v %+v", len(device.CPUs), len(device.Memory), *device.CPUs[0], *device.Memory[0])
	}
	if len(device.Drives) != 1 || device.Drives[0].Serial != "rackdata" || device.Drives[0].CapacityBytes != 8<<30 {
		t.Errorf("drives %+v", device.Drives)
	}
}

func TestWrongPassword(t *testing.T) {
	server, _, address := serve(t, nil)
	if _, err := library(t, address, "guess"); err == nil {
		t.Fatal("a wrong password was accepted")
	}
	server.SetPassword("new")
	if _, err := library(t, address, password); err == nil {
		t.Fatal("the password that was replaced is accepted")
	}
	if _, err := library(t, address, "new"); err != nil {
		t.Fatalf("the new password: %v", err)
	}
}

// client talks plain HTTP to a BMC, trusting any certificate.
type client struct {
	t       *testing.T
	address string
	http    *http.Client
}

func newClient(t *testing.T, address string) client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(transport.CloseIdleConnections)
	return client{t, address, &http.Client{Transport: transport, Timeout: 10 * time.Second}}
}

// do sends a request with the password, or with the token if there is one in headers.
func (c client) do(method, path, body string, headers ...string) (*http.Response, map[string]any) {
	c.t.Helper()
	request, err := http.NewRequestWithContext(c.t.Context(), method, "https://"+c.address+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	request.SetBasicAuth("admin", password)
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
		if headers[i] == "X-Auth-Token" {
			request.Header.Del("Authorization")
		}
	}
	response, err := c.http.Do(request)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	decoded := map[string]any{}
	if len(raw) > 0 && json.Unmarshal(raw, &decoded) != nil {
		c.t.Fatalf("%s %s: not JSON: %s", method, path, raw)
	}
	return response, decoded
}

func (c client) want(status int, method, path, body string, headers ...string) map[string]any {
	c.t.Helper()
	response, decoded := c.do(method, path, body, headers...)
	if response.StatusCode != status {
		c.t.Fatalf("%s %s: %s, want %d: %v", method, path, response.Status, status, decoded)
	}
	return decoded
}

const (
	system   = "/redfish/v1/Systems/1"
	reset    = system + "/Actions/ComputerSystem.Reset"
	sessions = "/redfish/v1/SessionService/Sessions"
	login    = `{"UserName":"admin","Password":"` + password + `"}`
)

// crawl reads every resource that the service links to, and returns their paths.
func (c client) crawl() map[string]bool {
	c.t.Helper()
	seen := map[string]bool{}
	var follow func(value any, from string)
	follow = func(value any, from string) {
		switch v := value.(type) {
		case []any:
			for _, one := range v {
				follow(one, from)
			}
		case map[string]any:
			for name, one := range v {
				at, is := one.(string)
				if name != "@odata.id" || !is {
					follow(one, from)
					continue
				}
				if seen[at] {
					continue
				}
				seen[at] = true
				response, body := c.do("GET", at, "")
				if response.StatusCode != http.StatusOK {
					c.t.Errorf("%s links to %s: %s", from, at, response.Status)
					continue
				}
				if body["@odata.id"] != at || body["@odata.type"] == nil || body["Name"] == nil || body["@odata.etag"] != response.Header.Get("ETag") {
					c.t.Errorf("%s: @odata.id %v, @odata.type %v, Name %v, etag %v", at, body["@odata.id"], body["@odata.type"], body["Name"], body["@odata.etag"])
				}
				follow(body, at)
			}
		}
	}
	follow(map[string]any{"@odata.id": "/redfish/v1"}, "the start")
	return seen
}

func TestEveryLinkLeadsSomewhere(t *testing.T) {
	_, machine, address := serve(t, nil)
	machine.power = bmc.On
	machine.notify(bmc.Event{Kind: bmc.PoweredOn, Cause: "the test"})
	if seen := newClient(t, address).crawl(); len(seen) < 40 {
		t.Errorf("found %d resources, want the whole tree", len(seen))
	}
}

func TestAuthentication(t *testing.T) {
	_, _, address := serve(t, nil)
	c := newClient(t, address)
	nobody := []string{"Authorization", ""}
	for _, path := range []string{"/redfish", "/redfish/v1", "/redfish/v1/", "/redfish/v1/odata"} {
		c.want(200, "GET", path, "", nobody...)
	}
	for _, path := range []string{system, "/redfish/v1/Nothing", sessions} {
		c.want(401, "GET", path, "", nobody...)
		c.want(401, "GET", path, "", "X-Auth-Token", "made-up")
	}
	c.want(401, "POST", reset, `{"ResetType":"On"}`, nobody...)
	c.want(401, "POST", sessions, `{"UserName":"admin","Password":"guess"}`)
	c.want(400, "POST", sessions, `{`)
}

func TestSessions(t *testing.T) {
	_, _, address := serve(t, func(c *bmc.Config) { c.MaxSessions = 2 })
	c := newClient(t, address)
	open := func() (token, location string) {
		t.Helper()
		response, _ := c.do("POST", sessions, login)
		if response.StatusCode != http.StatusCreated {
			t.Fatalf("login: %s", response.Status)
		}
		return response.Header.Get("X-Auth-Token"), response.Header.Get("Location")
	}
	first, location := open()
	second, _ := open()
	c.want(200, "GET", system, "", "X-Auth-Token", first)
	c.want(503, "POST", sessions, login)
	c.want(204, "DELETE", location, "", "X-Auth-Token", second)
	c.want(401, "GET", system, "", "X-Auth-Token", first)
	third, _ := open()
	c.want(204, "POST", "/redfish/v1/Managers/1/Actions/Manager.Reset", `{"ResetType":"GracefulRestart"}`)
	c.want(401, "GET", system, "", "X-Auth-Token", third)
}

func TestSessionExpires(t *testing.T) {
	_, _, address := serve(t, func(c *bmc.Config) { c.SessionTimeout, c.MaxSessions = 50*time.Millisecond, 1 })
	c := newClient(t, address)
	response, _ := c.do("POST", sessions, login)
	time.Sleep(100 * time.Millisecond)
	c.want(401, "GET", system, "", "X-Auth-Token", response.Header.Get("X-Auth-Token"))
	c.want(201, "POST", sessions, login) // the place is free again
}

func TestBootOverride(t *testing.T) {
	tests := []struct {
		name   string
		body   string
		status int
		want   bmc.Override
	}{
		{"once", `{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"UEFI"}}`, 200, bmc.Override{Target: bmc.Pxe, Once: true}},
		{"continuous", `{"Boot":{"BootSourceOverrideTarget":"Hdd","BootSourceOverrideEnabled":"Continuous"}}`, 200, bmc.Override{Target: bmc.Hdd}},
		{"target alone", `{"Boot":{"BootSourceOverrideTarget":"Pxe"}}`, 200, bmc.Override{Target: bmc.Pxe, Once: true}},
		{"http", `{"Boot":{"BootSourceOverrideTarget":"UefiHttp","BootSourceOverrideEnabled":"Once","HttpBootUri":"http://198.18.0.1/boot.efi"}}`, 200, bmc.Override{Target: bmc.UefiHTTP, Once: true, URI: "http://198.18.0.1/boot.efi"}},
		{"no URI", `{"Boot":{"HttpBootUri":"boot.efi"}}`, 400, bmc.Override{}},
		{"disabled", `{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Disabled"}}`, 200, bmc.Override{Target: bmc.None}},
		{"unknown target", `{"Boot":{"BootSourceOverrideTarget":"Floppy"}}`, 400, bmc.Override{}},
		{"wrong mode", `{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideMode":"Legacy"}}`, 400, bmc.Override{}},
		{"unknown enabled", `{"Boot":{"BootSourceOverrideEnabled":"Always"}}`, 400, bmc.Override{}},
		{"unknown boot property", `{"Boot":{"BootNext":"Boot0001"}}`, 400, bmc.Override{}},
		{"unknown property", `{"PowerState":"On"}`, 400, bmc.Override{}},
		{"no object", `{"Boot":"Pxe"}`, 400, bmc.Override{}},
		{"no JSON", `{"Boot":`, 400, bmc.Override{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, machine, address := serve(t, nil)
			newClient(t, address).want(tt.status, "PATCH", system, tt.body)
			if got := machine.Override(); got != tt.want {
				t.Errorf("override %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestLegacyMachineHasNoHTTPBoot(t *testing.T) {
	_, _, address := serve(t, func(c *bmc.Config) { c.Systems[0].Inventory.Firmware = bmc.Legacy })
	c := newClient(t, address)
	c.want(400, "PATCH", system, `{"Boot":{"BootSourceOverrideTarget":"UefiHttp"}}`)
	c.want(400, "PATCH", system, `{"Boot":{"HttpBootUri":"http://198.18.0.1/"}}`)
}

func TestIfMatch(t *testing.T) {
	_, _, address := serve(t, nil)
	c := newClient(t, address)
	response, _ := c.do("GET", system, "")
	tag := response.Header.Get("ETag")
	if !strings.HasPrefix(tag, `W/"`) {
		t.Fatalf("ETag %q, want a weak one", tag)
	}
	c.want(304, "GET", system, "", "If-None-Match", tag)
	const change = `{"IndicatorLED":"Blinking"}`
	c.want(412, "PATCH", system, change, "If-Match", `W/"00000000"`)
	c.want(200, "PATCH", system, change, "If-Match", strings.TrimPrefix(tag, "W/"))
	c.want(412, "PATCH", system, `{"IndicatorLED":"Off"}`, "If-Match", tag) // it has changed since
	body := c.want(200, "PATCH", system, `{"LocationIndicatorActive":false}`, "If-Match", "*")
	if body["IndicatorLED"] != "Off" {
		t.Errorf("IndicatorLED %v after LocationIndicatorActive was switched off", body["IndicatorLED"])
	}
}

func TestResetFitsTheState(t *testing.T) {
	tests := []struct {
		kind    string
		off, on int // status by state
	}{
		{"On", 204, 409}, {"ForceOff", 409, 204}, {"GracefulShutdown", 409, 204}, {"ForceRestart", 409, 204}, {"GracefulRestart", 409, 204},
		{"PowerCycle", 409, 204}, {"Nmi", 409, 204}, {"PushPowerButton", 204, 204}, {"Explode", 400, 400},
	}
	for _, tt := range tests {
		t.Run(tt.kind, func(t *testing.T) {
			_, machine, address := serve(t, nil)
			c := newClient(t, address)
			for power, status := range map[bmc.Power]int{bmc.Off: tt.off, bmc.On: tt.on} {
				machine.mu.Lock()
				machine.power = power
				machine.mu.Unlock()
				body := c.want(status, "POST", reset, `{"ResetType":"`+tt.kind+`"}`)
				if status < 400 {
					continue
				}
				described, _ := body["error"].(map[string]any)
				if info, _ := described["@Message.ExtendedInfo"].([]any); described["code"] == "" || len(info) != 1 {
					t.Errorf("error without ExtendedInfo: %v", body)
				}
			}
		})
	}
}

// eventually waits for what happens in the BMC's own time.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	waittest.Until(t, 5*time.Second, what, is)
}

func TestGracefulRestart(t *testing.T) {
	_, machine, address := serve(t, nil)
	c := newClient(t, address)
	machine.power = bmc.On
	c.want(204, "POST", reset, `{"ResetType":"GracefulRestart"}`)
	if machine.buttons != 1 || machine.Power() != bmc.On {
		t.Fatalf("%d presses, power %s; want one press and a server that is still on", machine.buttons, machine.Power())
	}
	_ = machine.become(bmc.Off, bmc.PoweredOff) // the guest obeys
	eventually(t, "on again", func() bool { return machine.Power() == bmc.On })
	_ = machine.become(bmc.Off, bmc.PoweredOff)
	_, other, address := serve(t, nil) // which is asked later, and comes back
	other.power = bmc.On
	newClient(t, address).want(204, "POST", reset, `{"ResetType":"GracefulRestart"}`)
	_ = other.become(bmc.Off, bmc.PoweredOff)
	eventually(t, "the other is on again", func() bool { return other.Power() == bmc.On })
	if machine.Power() != bmc.Off {
		t.Error("it came back after a shutdown that nobody asked to restart")
	}
}

func TestEventsAreLoggedAndStreamed(t *testing.T) {
	_, machine, address := serve(t, nil)
	c := newClient(t, address)
	before := c.want(200, "GET", system, "")
	if _, set := before["LastResetTime"]; set {
		t.Error("LastResetTime before any boot")
	}
	request, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+address+"/redfish/v1/EventService/SSE", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.SetBasicAuth("admin", password)
	stream, err := c.http.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Body.Close() }()
	if kind := stream.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/event-stream") {
		t.Fatalf("the stream is %q", kind)
	}
	_ = machine.become(bmc.On, bmc.PoweredOn)
	_ = machine.become(bmc.On, bmc.Reset)
	var got []byte
	buffer := make([]byte, 4096)
	for !bytes.Contains(got, []byte("ResourceStateChanged")) || !bytes.HasSuffix(got, []byte("\n\n")) {
		n, err := stream.Body.Read(buffer)
		if err != nil {
			t.Fatalf("%v after %s", err, got)
		}
		got = append(got, buffer[:n]...)
	}
	if !bytes.HasPrefix(got, []byte("id: 1\ndata: {")) || !bytes.Contains(got, []byte("ResourcePoweredOn")) {
		t.Errorf("the stream said %s", got)
	}
	after := c.want(200, "GET", system, "")
	if when, err := time.Parse(time.RFC3339, after["LastResetTime"].(string)); err != nil || time.Since(when) > time.Minute {
		t.Errorf("LastResetTime %v", after["LastResetTime"])
	}
	entries := c.want(200, "GET", system+"/LogServices/EventLog/Entries", "")
	if entries["Members@odata.count"] != 2.0 {
		t.Errorf("%v log entries, want 2", entries["Members@odata.count"])
	}
	c.want(204, "POST", system+"/LogServices/EventLog/Actions/LogService.ClearLog", "{}")
	entries = c.want(200, "GET", system+"/LogServices/EventLog/Entries", "")
	if entries["Members@odata.count"] != 0.0 {
		t.Errorf("%v log entries after ClearLog", entries["Members@odata.count"])
	}
}

func TestConsole(t *testing.T) {
	_, machine, address := serve(t, nil)
	config, err := websocket.NewConfig("wss://"+address+"/console0", "https://"+address)
	if err != nil {
		t.Fatal(err)
	}
	config.TlsConfig = &tls.Config{InsecureSkipVerify: true}
	config.Header.Set("Authorization", "Basic YWRtaW46Y29ycmVjdC1ob3JzZQ==")
	socket, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	if _, err := websocket.DialConfig(config); err == nil {
		t.Error("a second console was let in")
	}
	// The server is off: the console waits, and comes with the power. The keys of that time are kept.
	if err := websocket.Message.Send(socket, "hello"); err != nil {
		t.Fatal(err)
	}
	_ = machine.become(bmc.On, bmc.PoweredOn)
	_ = socket.SetReadDeadline(time.Now().Add(10 * time.Second))
	var echo []byte
	if err := websocket.Message.Receive(socket, &echo); err != nil || string(echo) != "hello" {
		t.Fatalf("the console echoes %q, %v", echo, err)
	}
	if err := socket.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the console is free again", func() bool {
		again, err := websocket.DialConfig(config)
		if err == nil {
			_ = again.Close()
		}
		return err == nil
	})
}

func TestUnreachable(t *testing.T) {
	server, _, address := serve(t, nil)
	c := newClient(t, address)
	c.want(200, "GET", system, "")
	server.SetUnreachable(true)
	c.http.Timeout = 300 * time.Millisecond
	request, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+address+"/redfish/v1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if response, err := c.http.Do(request); err == nil {
		_ = response.Body.Close()
		t.Fatal("an unreachable BMC answers")
	}
	server.SetUnreachable(false)
	c.http.Timeout = 10 * time.Second
	c.want(200, "GET", system, "")
}

func TestCertificate(t *testing.T) {
	dir := t.TempDir()
	server, _, address := serve(t, func(c *bmc.Config) { c.Dir = dir })
	fetch := func() *x509.Certificate {
		t.Helper()
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		return conn.ConnectionState().PeerCertificates[0]
	}
	first := fetch()
	if first.NotBefore.Year() != 1970 || first.NotAfter.Year() != 9999 {
		t.Errorf("valid from %s to %s", first.NotBefore, first.NotAfter)
	}
	if err := first.VerifyHostname("127.0.0.1"); err != nil {
		t.Error(err)
	}
	again, _, _ := serve(t, func(c *bmc.Config) { c.Dir = dir })
	if again.Fingerprint() != server.Fingerprint() {
		t.Error("another certificate after a restart")
	}
	old := server.Fingerprint()
	if err := server.NewCertificate(); err != nil {
		t.Fatal(err)
	}
	if fetch().Equal(first) || server.Fingerprint() == old {
		t.Error("the same certificate after NewCertificate")
	}
}

func TestFailNext(t *testing.T) {
	server, _, address := serve(t, nil)
	c := newClient(t, address)
	server.FailNext(2, 503, `{"error":{"code":"SYS518","message":"iDRAC is not ready"}}`)
	c.want(503, "GET", system, "")
	c.want(503, "GET", "/redfish/v1", "")
	c.want(200, "GET", system, "")
}

func TestDelayPower(t *testing.T) {
	server, machine, address := serve(t, nil)
	c := newClient(t, address)
	server.DelayPower(200 * time.Millisecond)
	c.want(204, "POST", reset, `{"ResetType":"On"}`)
	if machine.Power() != bmc.Off {
		t.Error("on at once")
	}
	eventually(t, "on", func() bool { return machine.Power() == bmc.On })
}

// A BMC that is closed with a delayed action open does not act any more.
func TestCloseCancelsDelayedPower(t *testing.T) {
	const delay = 50 * time.Millisecond
	server, machine, address := serve(t, nil)
	server.DelayPower(delay)
	newClient(t, address).want(204, "POST", reset, `{"ResetType":"On"}`)
	if err := server.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	later, other, address := serve(t, nil) // which is asked later, and does it
	later.DelayPower(delay)
	newClient(t, address).want(204, "POST", reset, `{"ResetType":"On"}`)
	eventually(t, "the other is on", func() bool { return other.Power() == bmc.On })
	if machine.Power() != bmc.Off {
		t.Error("a closed BMC has powered the server on")
	}
}

// gofish reads the types more strictly than bmclib lets through.
func TestGofishReadsTheSystem(t *testing.T) {
	_, _, address := serve(t, nil)
	api, err := gofish.Connect(gofish.ClientConfig{Endpoint: "https://" + address, Username: "admin", Password: password, Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	defer api.Logout()
	systems, err := api.Service.Systems()
	if err != nil || len(systems) != 1 {
		t.Fatalf("%d systems, %v", len(systems), err)
	}
	interfaces, err := systems[0].EthernetInterfaces()
	if err != nil || len(interfaces) != 2 || !strings.HasPrefix(interfaces[0].MACAddress, "52:54:00:01:01:0") {
		t.Errorf("interfaces %+v, %v", interfaces, err)
	}
	simple, err := systems[0].SimpleStorages()
	if err != nil || len(simple) != 1 {
		t.Errorf("simple storage %+v, %v", simple, err)
	}
	if systems[0].UUID == "" || systems[0].MemorySummary.TotalSystemMemoryGiB != 2 {
		t.Errorf("system %s with %v GiB", systems[0].UUID, systems[0].MemorySummary.TotalSystemMemoryGiB)
	}
	accounts, err := api.Service.AccountService()
	if err != nil {
		t.Fatal(err)
	}
	if list, err := accounts.Accounts(); err != nil || len(list) != 1 || list[0].UserName != "admin" {
		t.Errorf("accounts %+v, %v", list, err)
	}
}

func FuzzPatchSystem(f *testing.F) {
	f.Add(`{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once"}}`, `W/"1"`)
	f.Add(`{"Boot":null,"IndicatorLED":1}`, `*`)
	f.Add(`[]`, ``)
	machine := &fakeMachine{power: bmc.Off, notify: func(bmc.Event) {}}
	server, err := bmc.New(bmc.Config{Dir: f.TempDir(), Address: net.IPv4(127, 0, 0, 1), Username: "admin", Password: password,
		Systems: []bmc.SystemConfig{{Machine: machine, Inventory: bmc.Inventory{Firmware: bmc.UEFI}}}}, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	handler := server.Handler()
	f.Fuzz(func(t *testing.T, body, match string) {
		request, err := http.NewRequestWithContext(t.Context(), "PATCH", system, strings.NewReader(body))
		if err != nil {
			t.Skip(err)
		}
		request.SetBasicAuth("admin", password)
		request.Header.Set("If-Match", match)
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		if answer.Code >= 500 {
			t.Errorf("%q: status %d", body, answer.Code)
		}
		if target := machine.Override().Target; target != "" && target != bmc.None && target != bmc.Pxe && target != bmc.Hdd && target != bmc.UefiHTTP {
			t.Errorf("%q sets the override to %q", body, target)
		}
	})
}
