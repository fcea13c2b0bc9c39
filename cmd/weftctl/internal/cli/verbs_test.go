package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// withoutTimes is the output with its times taken out.
func withoutTimes(out string) (lines []string) {
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		f := strings.Fields(line)
		lines = append(lines, strings.Join(slices.Delete(f, min(2, len(f)), min(3, len(f))), " "))
	}
	return lines
}

// twenty stores 20 Machines: r1u01 to r1u20, every other one with the label tier=app.
func twenty(b *bootd) {
	for i := range 20 {
		b.machine(fmt.Sprintf("r1u%02d", i+1), func(m *api.Machine) {
			if i%2 == 0 {
				m.Metadata.Labels = map[string]string{"tier": "app"}
			}
		})
	}
}

const brake = "the power of 8 machines of rack r1 is being changed, as many as the Site's limits.power.perRack allows"

// TestVerbOfMany asks 20 Machines, of which one is held, one fails and one refuses.
func TestVerbOfMany(t *testing.T) {
	b := newBootd(t)
	twenty(b)
	b.refuse["POST /v1/machines/r1u04/power"] = &api.Problem{Status: 422, Title: "Unprocessable Content", Detail: "machine r1u04 has no BMC in its spec"}
	held := make(chan struct{})
	b.serving = func(name string, r *api.Request) {
		switch name {
		case "r1u02":
			r.State, r.Message = api.RequestFailed, "BMC does not answer"
		case "r1u03":
			r.State = api.RequestPending
			close(held)
		}
	}
	go func() {
		<-held
		b.finishes("r1u03", func(m *api.Machine, _ *api.Request) {
			m.Status.Conditions.Set(time.Now(), api.CondHeld, api.True, "LimitPerRack", brake)
		})
		for len(b.sent("POST")) < 20 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(50 * time.Millisecond) // long enough to be shown
		b.finishes("r1u03", func(_ *api.Machine, r *api.Request) { r.State = api.RequestDone })
	}()
	r := b.run(t, "", "machine", "power", "on", "--all", "--yes")
	if r.code != exitFailed {
		t.Errorf("exit code %d", r.code)
	}
	lines := withoutTimes(r.out)
	if len(lines) != 21 || lines[0] != "MACHINE RESULT MESSAGE" || lines[1] != "r1u01 Done" || lines[18] != "r1u20 Done" ||
		lines[19] != "r1u02 Failed BMC does not answer" || lines[20] != "r1u04 Failed Unprocessable Content: machine r1u04 has no BMC in its spec" {
		t.Errorf("printed\n%s", r.out)
	}
	for _, line := range []string{"machine/r1u03 power on: held: " + brake + "\n", "machine/r1u02 power on: Failed: BMC does not answer\n", "machine/r1u20 power on: Done\n"} {
		if !strings.Contains(r.err, line) {
			t.Errorf("standard error lacks %q:\n%s", line, r.err)
		}
	}
}

func TestVerbSelection(t *testing.T) {
	b := newBootd(t)
	twenty(b)
	asked := func() (names []string) {
		for _, path := range b.sent("POST") {
			names = append(names, strings.Split(path, "/")[3])
		}
		slices.Sort(names)
		b.mu.Lock()
		b.requests = nil
		b.mu.Unlock()
		return names
	}
	for _, c := range []struct {
		args, want string
	}{
		{"identify on -l tier=app", "r1u01 r1u03 r1u05 r1u07 r1u09 r1u11 r1u13 r1u15 r1u17 r1u19"},
		{"identify off r1u01 r1u02 r1u03 r1u01 -l !tier", "r1u02"},
		{"inspect r1u05 r1u06", "r1u05 r1u06"},
	} {
		if r := b.run(t, "", append([]string{"machine"}, strings.Fields(c.args)...)...); r.code != 0 || strings.Join(asked(), " ") != c.want {
			t.Errorf("%s: %+v, asked %v", c.args, r, b.sent("POST"))
		}
	}
	if r := b.run(t, "", "bmc", "reset", "r1u05"); r.code != 0 || strings.Join(b.sent("POST"), " ") != "/v1/machines/r1u05/reset-bmc" {
		t.Errorf("bmc reset: %+v, asked %v", r, b.sent("POST"))
	}
	asked()
	b.run(t, "", "machine", "inspect", "-l", "tier=none").want(t, 1, "", "no Machine is selected")
	b.run(t, "", "machine", "inspect", "-l", "").want(t, 2, "", "-l is empty, which selects every Machine: use --all for that")
	b.run(t, "", "machine", "inspect", "--all", "r1u01").want(t, 2, "", "--all goes with neither names nor -l")
	b.run(t, "", "machine", "inspect", "-l", "a b").want(t, 2, "", "invalid selector")
	b.run(t, "", "machine", "inspect", "r1u01", "-o", "xml").want(t, 2, "", "want table, json or yaml")
	b.run(t, "", "machine", "power", "off", "--all").want(t, 2, "", "power off all 20 Machines? [y/N]", "there is no one to ask: add --yes")
	b.run(t, "n\n", "machine", "power", "off", "--all").want(t, 1, "", "nothing was done")
	if got := asked(); len(got) > 0 {
		t.Errorf("asked %v", got)
	}
	if r := b.run(t, "y\n", "machine", "power", "off", "--all"); r.code != 0 || len(asked()) != 20 {
		t.Errorf("%+v", r)
	}
}

func TestVerbOutputs(t *testing.T) {
	b := newBootd(t)
	b.machine("r1u07", nil)
	r := b.run(t, "", "machine", "inspect", "r1u07", "nope", "-o", "json", "--request-id", "R1")
	var got fleetReport
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || r.code != 1 || got.Action != "inspect" || got.Request != "R1" || len(got.Machines) != 2 ||
		got.Machines[0].Result != "Done" || got.Machines[1].Machine != "nope" || got.Machines[1].Result != "Failed" {
		t.Errorf("%v %+v", err, r)
	}
	if r := b.run(t, "", "machine", "inspect", "r1u07", "-o", "yaml"); r.code != 0 || !strings.Contains(r.out, "machines:\n  - machine: r1u07\n    result: Done\n") {
		t.Errorf("%+v", r)
	}
}

// TestVerbIsAskedOnce: an answer that is lost, and a command that is repeated, ask for nothing twice.
func TestVerbIsAskedOnce(t *testing.T) {
	b := newBootd(t)
	b.machine("r1u07", nil)
	served := 0
	b.serving = func(string, *api.Request) { served++ }
	b.losing = func(r *http.Request) bool { return r.Method == http.MethodPost && len(b.sent("POST")) <= 2 }
	for range 2 {
		if r := b.run(t, "", "machine", "power", "reset", "r1u07", "--request-id", "R1"); r.code != 0 {
			t.Fatalf("%+v", r)
		}
	}
	if n := len(b.sent("POST")); served != 1 || n != 4 {
		t.Errorf("served %d times of %d", served, n)
	}
	if r := b.run(t, "", "machine", "power", "off", "r1u07", "--request-id", "R1"); r.code != 1 || !strings.Contains(r.out, "it was asked for power reset with request ID R1") {
		t.Errorf("%+v", r)
	}
}

// TestVerbStopsWaiting: what was asked for is left to bootd, and can be waited for again.
func TestVerbStopsWaiting(t *testing.T) {
	b := newBootd(t)
	b.machine("r1u07", nil)
	b.machine("r1u08", nil)
	b.serving = func(name string, r *api.Request) {
		if name == "r1u08" {
			r.State = api.RequestRunning
		}
	}
	r := b.run(t, "", "machine", "power", "on", "r1u07", "r1u08", "--timeout", "300ms", "--request-id", "R1")
	if lines := withoutTimes(r.out); r.code != 1 || lines[1] != "r1u07 Done" || lines[2] != "r1u08 Unfinished under way" ||
		!strings.Contains(r.err, "bootd continues with 1 Machine. To wait for them again, repeat the command with --request-id R1: nothing is done twice.") {
		t.Errorf("%+v", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	r = runWith(t, ctx, map[string]string{"RACKWEFT_SERVER": "unix://" + b.socket}, "", "machine", "power", "on", "r1u08", "--request-id", "R1")
	if lines := withoutTimes(r.out); r.code != 1 || lines[1] != "r1u08 Unfinished under way" || !strings.Contains(r.err, "Stopped waiting") {
		t.Errorf("%+v", r)
	}
	time.AfterFunc(100*time.Millisecond, func() {
		b.finishes("r1u08", func(_ *api.Machine, r *api.Request) { r.State = api.RequestDone })
	})
	if r := b.run(t, "", "machine", "power", "on", "r1u08", "--request-id", "R1"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if r := b.run(t, "", "machine", "power", "reset", "r1u08", "--no-wait"); r.code != 0 || withoutTimes(r.out)[1] != "r1u08 Asked" {
		t.Errorf("%+v", r)
	}
	time.AfterFunc(100*time.Millisecond, func() { b.drop("machines/r1u08") })
	if r := b.run(t, "", "machine", "power", "off", "r1u08"); r.code != 1 || withoutTimes(r.out)[1] != "r1u08 Failed it was deleted" {
		t.Errorf("%+v", r)
	}
}
