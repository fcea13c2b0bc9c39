package hardware

import (
	"context"
	"fmt"
	"net/http"
)

type permitKey struct{}

// WithPermit has every command to a BMC, which is a request that is no read and
// no logout, ask permit just before it is sent. When that is an error the command
// is not sent, and fails with it.
func WithPermit(ctx context.Context, permit func() error) context.Context {
	return context.WithValue(ctx, permitKey{}, permit)
}

func Permitted(ctx context.Context, method, path string) error {
	permit, _ := ctx.Value(permitKey{}).(func() error)
	if permit == nil || method == http.MethodGet || method == http.MethodHead || method == http.MethodDelete {
		return nil
	}
	if err := permit(); err != nil {
		return fmt.Errorf("%s %s is not sent: %w", method, path, err)
	}
	return nil
}
