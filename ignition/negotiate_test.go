package ignition

import (
	"slices"
	"strings"
	"testing"
)

func TestNegotiateVersion(t *testing.T) {
	const client = "application/vnd.coreos.ignition+json;version="
	tests := []struct {
		name, accept, imageMax string
		want                   string // a version, or part of an error
	}{
		{"Ignition 2.26", client + "3.6.0, */*;q=0.1", "3.6.0", "3.6.0"},
		{"Ignition 2.14", client + "3.3.0, */*;q=0.1", "3.6.0", "3.3.0"},
		{"image says less", client + "3.6.0, */*;q=0.1", "3.4.0", "3.4.0"},
		{"image says nothing", client + "3.5.0, */*;q=0.1", "", "3.5.0"},
		{"client newer than rackweft", client + "3.9.0, */*;q=0.1", "3.8.0", "3.6.0"},
		{"experimental client", client + "3.7.0-experimental, */*;q=0.1", "3.6.0", "3.6.0"},
		{"experimental is older", client + "3.5.0-experimental", "3.6.0", "3.4.0"},
		{"patch", client + "3.4.7", "3.6.0", "3.4.0"},
		{"absent", "", "3.2.0", "3.2.0"},
		{"blank", "  ", "3.2.0", "3.2.0"},
		{"curl", "*/*", "3.4.0", "3.4.0"},
		{"json", "application/json", "3.4.0", "3.4.0"},
		{"any application", "text/html, application/*;q=0.2", "3.4.0", "3.4.0"},
		{"no version", "application/vnd.coreos.ignition+json", "3.4.0", "3.4.0"},
		{"newest of several", client + "3.2.0, " + client + "3.5.0;q=0.5," + client + "3.3.0", "3.6.0", "3.5.0"},
		{"refused version", client + "3.6.0;q=0, " + client + "3.2.0", "3.6.0", "3.2.0"},
		{"quoted", `application/vnd.coreos.ignition+json;version="3.3.0";x="a,b;\"", */*`, "3.6.0", "3.3.0"},
		{"case and space", "Application/VND.coreos.ignition+JSON ; Version=3.3.0 ,, ", "3.6.0", "3.3.0"},

		{"spec 2", client + "2.4.0, */*;q=0.1", "3.6.0", "the client understands Ignition up to 2.4.0, rackweft needs 3.1.0"},
		{"spec 3.0", client + "3.0.0", "3.6.0", "the client understands Ignition up to 3.0.0"},
		{"old image", client + "3.6.0", "2.3.0", "the image understands Ignition up to 2.3.0"},
		{"nobody says", "", "", "set the Image's ignitionVersion"},
		{"nobody says, curl", "*/*", "", "set the Image's ignitionVersion"},
		{"browser", "text/html, image/png", "3.6.0", `the client takes "text/html, image/png" only`},
		{"all refused", client + "3.6.0;q=0", "3.6.0", "only, not Ignition configs"},
		{"bad image", "", "three", `ignitionVersion "three" is not a version`},
		{"bad version", client + "latest", "3.6.0", `"latest" is not an Ignition version`},
		{"short version", client + "3", "3.6.0", `"3" is not an Ignition version`},
		{"bad quality", client + "3.6.0;q=x", "3.6.0", `q="x" is not a quality`},
		{"quality above 1", "*/*;q=2", "3.6.0", `q="2" is not a quality`},
		{"quality NaN", "*/*;q=NaN", "3.6.0", `q="NaN" is not a quality`},
		{"no slash", "ignition", "3.6.0", `"ignition" is not a media range`},
		{"garbage", ";;;", "3.6.0", "is not a media range"},
		{"long garbage", strings.Repeat("x", 500), "3.6.0", strings.Repeat("x", 80) + `…" is not`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := NegotiateVersion(tt.accept, tt.imageMax)
			if err != nil {
				got = err.Error()
			}
			if (err != nil && !strings.Contains(got, tt.want)) || (err == nil && got != tt.want) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func FuzzNegotiateVersion(f *testing.F) {
	f.Add("application/vnd.coreos.ignition+json;version=3.6.0, */*;q=0.1", "3.4.0")
	f.Add(`a/b;c="d,\"e", */*`, "")
	f.Add("", "3.1.0")
	f.Fuzz(func(t *testing.T, accept, imageMax string) {
		got, err := NegotiateVersion(accept, imageMax)
		if err == nil && !slices.Contains(Versions(), got) {
			t.Errorf("%q is none of ours", got)
		}
		if err != nil && (got != "" || len(err.Error()) > 600) {
			t.Errorf("got %q with %d bytes of error", got, len(err.Error()))
		}
	})
}
