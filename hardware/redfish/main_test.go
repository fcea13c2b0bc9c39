package redfish

import (
	"flag"
	"os"
	"testing"
)

// TestMain runs many tests beside each other: the driver waits for BMCs most of the time.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
