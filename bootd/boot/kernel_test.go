package boot

import (
	"fmt"
	"regexp"
	"testing"

	"github.com/rackweft/rackweft/api"
)

func TestKernelFiles(t *testing.T) {
	files := map[string]string{}
	for _, f := range kernelFiles() {
		files[f.Path] = string(f.Contents)
	}
	if got, want := files["/etc/iproute2/rt_protos.d/rackweft.conf"], fmt.Sprintf("%d\trackweft\n%d\trackweft-bgp\n", api.RouteProtocol, api.BGPRouteProtocol); got != want {
		t.Errorf("routes are told to ip(8) as %q, want %q", got, want)
	}
	line := regexp.MustCompile(`(?m)^(#.*|net\.ipv[46]\.neigh\.default\.gc_thresh[123] = \d+)\n`)
	if rest := line.ReplaceAllString(files["/etc/sysctl.d/60-rackweft.conf"], ""); rest != "" {
		t.Errorf("sysctl.d has %q", rest)
	}
}
