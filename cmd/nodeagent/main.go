// Command nodeagent is rackweft's host daemon.
//
// Its speaker's neighbours have TCP MD5 keys, which MPTCP listeners, Go's
// default, do not support.
//
//go:debug multipathtcp=0
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/rackweft/rackweft/internal/exit"
)

// version is set by the linker: -ldflags "-X main.version=v1.2.3".
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := 0
	if err := command(version, os.Stdout, os.Stderr).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "nodeagent:", err)
		code = exit.Code(err)
	}
	stop()
	os.Exit(code)
}
