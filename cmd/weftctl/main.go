// Command weftctl is how a person talks to bootd.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/rackweft/rackweft/cmd/weftctl/internal/cli"
)

// version is set by the linker: -ldflags "-X main.version=v1.2.3".
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, cli.Process{
		Version: version, Args: os.Args[1:], Env: os.Getenv,
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
	})
	stop()
	os.Exit(code)
}
