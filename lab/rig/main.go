package rig

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/rackweft/rackweft/lab"
)

// process lists what the test process must clean up when it ends.
var process struct {
	sync.Mutex
	binaries string             // made by Build
	racks    map[*lab.Rack]bool // that are up
}

// Main runs the tests of a package that uses rig, removes what Build left, and takes the racks down when the
// process is interrupted, which runs no test's Cleanup:
//
//	func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }
func Main(m *testing.M) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ended := make(chan int, 1)
	go func() { ended <- m.Run() }()
	code := 130
	select {
	case code = <-ended:
	case <-ctx.Done():
		stop() // a second signal ends it at once
		closeRacks()
	}
	process.Lock()
	defer process.Unlock()
	if process.binaries != "" {
		_ = os.RemoveAll(process.binaries)
	}
	return code
}

func closeRacks() {
	process.Lock()
	defer process.Unlock()
	for r := range process.racks {
		_ = closeRack(r)
	}
}

func addRack(r *lab.Rack) {
	process.Lock()
	defer process.Unlock()
	if process.racks == nil {
		process.racks = map[*lab.Rack]bool{}
	}
	process.racks[r] = true
}

func removeRack(r *lab.Rack) error {
	process.Lock()
	delete(process.racks, r)
	process.Unlock()
	return closeRack(r)
}

// closeRack takes a rack down and removes its directory, unless RACKWEFT_KEEP is set.
func closeRack(r *lab.Rack) error {
	err := r.Close(context.Background())
	if os.Getenv("RACKWEFT_KEEP") != "" {
		return err
	}
	return errors.Join(err, os.RemoveAll(r.Dir()))
}

// sweep removes racks whose test process was killed.
func sweep() error {
	left, err := filepath.Glob(filepath.Join(os.TempDir(), namePrefix+"*", "rack.json"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range left {
		dir := filepath.Dir(path)
		err := lab.Clean(dir)
		if errors.Is(err, lab.ErrInUse) {
			continue // up, and owned by another process
		}
		if err == nil {
			err = os.RemoveAll(dir)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
