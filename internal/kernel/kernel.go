// Package kernel queries the kernel, over netlink, for lists that may change
// while they are read.
package kernel

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// tries bounds the dumps of a list that keeps changing.
const tries = 5

// List returns the result of dump, a netlink dump. A dump interrupted by a
// change (NLM_F_DUMP_INTR) may lack entries or have duplicates, so it is
// repeated. The error is netlink.ErrDumpInterrupted when all were interrupted.
func List[T any](dump func() (T, error)) (T, error) {
	for range tries - 1 {
		list, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return dump()
}
