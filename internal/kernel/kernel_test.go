package kernel

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestList(t *testing.T) {
	refused := errors.New("refused")
	for _, c := range []struct {
		name  string
		fails []error // of the dumps, in order; then they succeed
		calls int
		want  error
	}{
		{"whole", nil, 1, nil},
		{"interrupted once", []error{netlink.ErrDumpInterrupted}, 2, nil},
		{"interrupted four times", repeat(netlink.ErrDumpInterrupted, 4), 5, nil},
		{"interrupted always", repeat(fmt.Errorf("list: %w", netlink.ErrDumpInterrupted), 100), 5, netlink.ErrDumpInterrupted},
		{"refused", []error{refused}, 1, refused},
		{"refused in the end", []error{netlink.ErrDumpInterrupted, refused}, 2, refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			calls := 0
			list, err := List(func() ([]int, error) {
				calls++
				if calls <= len(c.fails) {
					return []int{1}, c.fails[calls-1]
				}
				return []int{1, 2}, nil
			})
			if !errors.Is(err, c.want) || calls != c.calls {
				t.Errorf("%d dumps and the error %v, want %d and %v", calls, err, c.calls, c.want)
			}
			if err == nil && len(list) != 2 {
				t.Errorf("it returns %v, an interrupted list", list)
			}
		})
	}
}

func repeat(err error, n int) (list []error) {
	for range n {
		list = append(list, err)
	}
	return list
}
