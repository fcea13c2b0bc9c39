package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
)

func TestHugePagesOfHost(t *testing.T) {
	const meminfo = "MemTotal: 1000 kB\nHugePages_Total:      40\nHugePages_Free:       36\nHugePages_Rsvd:        4\nHugepagesize:       2048 kB\n"
	for memory, want := range map[int64]string{
		64 << 20: "", 66 << 20: "it needs 33 huge pages of 2048 KiB, and the host has 32 free", 3 << 20: "want a multiple",
	} {
		if err := checkHugePages(meminfo, memory); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%d bytes: %v, want %q", memory, err, want)
		}
	}
	for _, meminfo := range []string{"MemTotal: 1 kB\n", "HugePages_Free: x\n"} {
		if checkHugePages(meminfo, 2<<20) == nil {
			t.Errorf("%q is enough", meminfo)
		}
	}
}

// reserve has the host have so many more huge pages of 2 MiB until the test ends.
func reserve(t *testing.T, pages int) {
	t.Helper()
	const path = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
	read := func() int {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Skipf("needs huge pages: %v", err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(raw)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := read()
	set := func(n int) {
		if err := os.WriteFile(path, []byte(strconv.Itoa(n)), 0); err != nil {
			t.Skipf("needs huge pages: %v", err)
		}
	}
	t.Cleanup(func() { set(before) })
	set(before + pages)
	if read() < before+pages {
		t.Skipf("needs %d huge pages: the host's memory has not enough in one piece", pages)
	}
}

// A Guest has its memory and processors where its part says.
func TestTuning(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("needs two processors")
	}
	h := newHost(t)
	h.run()
	node := 0
	g := bare(h)
	g.CPUs = 2
	g.Tuning = api.GuestTuning{CPUSet: "0-1", HugePages: true, NUMANode: &node}
	huge := *g
	huge.Memory = quantity("64Gi")
	h.want(part("web", uid1, &huge))
	h.wait("it says what the host lacks", func() bool { return strings.Contains(h.status("guest/web").Message, "raise vm.nr_hugepages") })
	reserve(t, 33)
	h.want(part("web", uid1, g))
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	id, err := launch.ReadIdentity(h.runDir(uid1))
	h.try(err)
	proc := fmt.Sprintf("/proc/%d", id.PID)
	maps, err := os.ReadFile(proc + "/numa_maps")
	h.try(err)
	found := false
	for line := range strings.Lines(string(maps)) {
		found = found || strings.Contains(line, "bind:0") && strings.Contains(line, " huge ") && strings.Contains(line, "N0=32")
	}
	if !found {
		t.Errorf("no 32 huge pages bound to node 0: %s", maps)
	}
	threads, err := filepath.Glob(proc + "/task/*")
	h.try(err)
	at := map[string]bool{}
	for _, thread := range threads {
		name, err := os.ReadFile(thread + "/comm")
		if err != nil || !strings.HasPrefix(string(name), "CPU ") {
			continue
		}
		tid, err := strconv.Atoi(filepath.Base(thread))
		h.try(err)
		var set unix.CPUSet
		h.try(unix.SchedGetaffinity(tid, &set))
		for cpu := range 2 {
			if set.Count() == 1 && set.IsSet(cpu) {
				at[fmt.Sprintf("%s at %d", strings.Fields(string(name))[1][:1], cpu)] = true
			}
		}
	}
	if len(at) != 2 || !at["0 at 0"] || !at["1 at 1"] {
		t.Errorf("its processors are %v", at)
	}
	h.want(removed("web", uid1))
	h.wait("it is gone", func() bool { _, err := os.Stat(h.guestDir(uid1)); return os.IsNotExist(err) })
}
