package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/rackweft/rackweft/internal/wait"
)

// Report describes the state of a rack.
type Report struct {
	Name           string          `json:"name"`
	Dir            string          `json:"dir"`
	Started        time.Time       `json:"started"`
	OwnerPID       int             `json:"ownerPID"`
	Accelerator    Accelerator     `json:"accelerator"`
	RoomNamespace  string          `json:"roomNamespace"`
	BootdNamespace string          `json:"bootdNamespace"`
	BootdPID       int             `json:"bootdPID,omitempty"`
	BootdRestarts  int             `json:"bootdRestarts"`
	BootdSocket    string          `json:"bootdSocket"`
	Manifests      []string        `json:"manifests"`
	Machines       []MachineReport `json:"machines"`
}

// MachineReport is one machine of a Report.
type MachineReport struct {
	Name          string   `json:"name"`
	Firmware      Firmware `json:"firmware"`
	Power         string   `json:"power"`
	PID           int      `json:"pid,omitempty"`
	BMC           string   `json:"bmc"`
	ConsoleLog    string   `json:"consoleLog"`
	ConsoleSocket string   `json:"consoleSocket"`
}

// BootdSocket is the unix socket of bootd's API.
func (r *Rack) BootdSocket() string { return filepath.Join(r.BootdRunDir(), "bootd.sock") }

// Report returns the state of the rack.
func (r *Rack) Report() Report {
	report := Report{
		Name: r.config.Name, Dir: r.config.Dir, Started: r.started, OwnerPID: os.Getpid(), Accelerator: r.config.Accelerator,
		RoomNamespace: r.netNamespace(), BootdNamespace: r.bootdNamespace(),
		BootdPID: r.BootdPID(), BootdRestarts: r.bootdRestarts(), BootdSocket: r.BootdSocket(), Manifests: r.Manifests(),
	}
	for _, m := range r.machines {
		one := MachineReport{Name: m.config.Name, Firmware: m.config.Firmware, Power: string(m.Power()),
			BMC: "https://" + m.config.BMCAddress().String(), ConsoleLog: m.ConsoleLog(), ConsoleSocket: m.ConsoleSocket()}
		if b := m.current(); b != nil {
			one.PID = b.process.pid
		}
		report.Machines = append(report.Machines, one)
	}
	return report
}

// ErrDown is returned by Serve when a client has requested Down.
var ErrDown = errors.New("the rack was asked to go down")

func controlSocket(dir string) string { return filepath.Join(dir, "control.sock") }

// Serve answers Status and Down on Dir/control.sock until ctx ends or Down is
// requested; then the owner closes the rack. Only the owner's user may use the
// socket.
func (r *Rack) Serve(ctx context.Context) error {
	path := controlSocket(r.config.Dir)
	listener, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(err, listener.Close())
	}
	down := wait.NewSignal()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(r.Report()) // the client may be gone
	})
	mux.HandleFunc("POST /down", func(w http.ResponseWriter, _ *http.Request) {
		down.Set()
		w.WriteHeader(http.StatusAccepted)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	select {
	case <-ctx.Done():
		err = nil
	case <-down:
		err = ErrDown
	case err := <-served:
		return fmt.Errorf("control socket: %w", err)
	}
	// Shutdown, not Close, so that the client gets its answer.
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if shut := server.Shutdown(grace); shut != nil {
		_ = server.Close()
	}
	<-served
	return err
}

// ErrNotUp is returned for a Dir without a rack, or with one whose owner is
// gone.
var ErrNotUp = errors.New("no rack is up")

// Status asks the rack in dir for its Report.
func Status(ctx context.Context, dir string) (Report, error) {
	response, err := control(ctx, dir, http.MethodGet, "/status")
	if err != nil {
		return Report{}, err
	}
	defer func() { _ = response.Body.Close() }()
	var report Report
	if err := json.NewDecoder(response.Body).Decode(&report); err != nil {
		return Report{}, fmt.Errorf("status of the rack in %s: %w", dir, err)
	}
	return report, nil
}

// Down takes the rack in dir down and returns when nothing of it is left. If
// its owner is gone or does not answer, Down cleans up itself. It is not an
// error when no rack is up.
func Down(ctx context.Context, dir string) error {
	file, err := readRackFile(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !file.Owner.alive(file.BootID) {
		return Clean(dir)
	}
	response, err := control(ctx, dir, http.MethodPost, "/down")
	if err != nil {
		return fmt.Errorf("%w; its owner is pid %d", err, file.Owner.PID)
	}
	_ = response.Body.Close()
	for {
		now, err := readRackFile(dir)
		if errors.Is(err, fs.ErrNotExist) || err == nil && now.Owner != file.Owner {
			return nil
		}
		if !file.Owner.alive(file.BootID) {
			return Clean(dir) // it ended without finishing
		}
		if err := wait.For(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("take down the rack in %s: pid %d is still at it: %w", dir, file.Owner.PID, err)
		}
	}
}

func control(ctx context.Context, dir, method, path string) (*http.Response, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", controlSocket(dir))
	}}
	request, err := http.NewRequestWithContext(ctx, method, "http://rack"+path, bytes.NewReader(nil))
	if err != nil {
		return nil, err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("%w in %s (%w)", ErrNotUp, dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("rack in %s: %w", dir, err)
	}
	if response.StatusCode >= 300 {
		_ = response.Body.Close()
		return nil, fmt.Errorf("rack in %s: %s %s: %s", dir, method, path, response.Status)
	}
	return response, nil
}
