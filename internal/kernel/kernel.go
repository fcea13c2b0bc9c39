// Package kernel asks the kernel, over netlink, for lists that may change while
// they are read.
package kernel

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// tries bounds how often a list that changes meanwhile is asked for.
const tries = 5

// List returns what dump lists, a netlink dump. One that a change has
// interrupted (NLM_F_DUMP_INTR) may lack entries or have some twice: it is asked
// for again. The error is netlink.ErrDumpInterrupted when no dump was whole.
func List[T any](dump func() (T, error)) (T, error) {
	for range tries - 1 {
		list, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return dump()
}
