package overlay

import (
	"testing"
)

func red() tenant   { return tenant{name: "red", uid: "uid-red", vni: 101, second: 5} }
func green() tenant { return tenant{name: "green", uid: "uid-green", vni: 102, second: 5, third: 10} }

// blue has the very leases of red.
func blue() tenant { return tenant{name: "blue", uid: "uid-blue", vni: 10003, second: 5} }

func TestNetworksReachEachOtherAndNobodyElse(t *testing.T) {
	f := newFabric(t, 3, false)
	f.reconcile(red(), green(), blue())
	for _, n := range []tenant{red(), green(), blue()} {
		f.allPairs(n)
	}
}
