// Command bootd turns powered-off servers into hosts: it serves DHCP, TFTP, HTTP
// boot and Ignition, drives BMCs, and is the API that weftctl and nodeagent use.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/rackweft/rackweft/internal/exit"
)

// version is set by the Makefile.
var version = "unknown"

func main() {
	// The caches share the process with embedded etcd; collecting garbage sooner
	// costs little at bootd's rates and keeps the resident set small.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(30)
	}
	// With this variable bmclib prints login bodies, passwords included.
	_ = os.Unsetenv("DEBUG_BMCLIB")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "bootd: %s\n", err)
		os.Exit(exit.Code(err))
	}
}
