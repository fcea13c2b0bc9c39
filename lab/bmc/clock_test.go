package bmc_test

import (
	"testing"
	"time"

	"github.com/rackweft/rackweft/lab/bmc"
)

func TestClockFaults(t *testing.T) {
	server, machine, address := serve(t, nil)
	c := newClient(t, address)
	read := func(path, property string) time.Time {
		t.Helper()
		text, _ := c.want(200, "GET", path, "")[property].(string)
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatalf("%s of %s: %v", property, path, err)
		}
		return at
	}
	near := func(what string, got, want time.Time) {
		t.Helper()
		if d := got.Sub(want).Abs(); d > 30*time.Second {
			t.Errorf("%s is %s, want %s", what, got, want)
		}
	}
	const manager = "/redfish/v1/Managers/1"
	for _, clock := range []time.Time{time.Unix(0, 0), time.Now().Add(-48 * time.Hour), time.Now().Add(400 * 24 * time.Hour)} {
		server.SetClock(clock)
		near("DateTime", read(manager, "DateTime"), clock)
		_ = machine.become(bmc.On, bmc.Reset)
		near("LastResetTime", read(system, "LastResetTime"), clock)
	}
	// NTP mends the clock: the record stays where it was.
	before := read(system, "LastResetTime")
	server.SetClock(time.Now())
	near("DateTime", read(manager, "DateTime"), time.Now())
	if got := read(system, "LastResetTime"); !got.Equal(before) {
		t.Errorf("LastResetTime %s became %s with the clock", before, got)
	}
}

func TestLastResetTimeFaults(t *testing.T) {
	server, machine, address := serve(t, nil)
	c := newClient(t, address)
	_ = machine.become(bmc.On, bmc.PoweredOn)
	server.SetLastResetTime("")
	if got, set := c.want(200, "GET", system, "")["LastResetTime"]; set {
		t.Errorf("LastResetTime %v, want none", got)
	}
	for _, impossible := range []string{"0000-00-00T00:00:00Z", "never"} {
		server.SetLastResetTime(impossible)
		if got := c.want(200, "GET", system, "")["LastResetTime"]; got != impossible {
			t.Errorf("LastResetTime %v, want %q", got, impossible)
		}
	}
	server.RestoreLastResetTime()
	if got, _ := c.want(200, "GET", system, "")["LastResetTime"].(string); len(got) != len(time.RFC3339)-5 {
		t.Errorf("LastResetTime %q after the fault", got)
	}
}
