package hardware

import "context"

type yieldKey struct{}

// WithYield has long readings of a BMC call yield between two requests, so that what is urgent need not wait for their end.
func WithYield(ctx context.Context, yield func()) context.Context {
	return context.WithValue(ctx, yieldKey{}, yield)
}

// Yield lets others use the BMC before the next request is sent, where the context says how.
func Yield(ctx context.Context) {
	if yield, _ := ctx.Value(yieldKey{}).(func()); yield != nil {
		yield()
	}
}
