package bmc

import "time"

// POST makes a system report the progress of its power-on self-test, as HPE's
// iLO does in Oem.Hpe. The zero value reports none.
type POST struct {
	// Duration is how long the system stays InPost, where writes of Boot are
	// refused.
	Duration time.Duration
	// NoDisk is a disk without an operating system: a boot from it stays in
	// InPostDiscoveryComplete.
	NoDisk bool
}

// postState is HPE's PostState.
type postState string

const (
	postOff        postState = "PowerOff"
	inPost         postState = "InPost"
	postDiscovered postState = "InPostDiscoveryComplete"
	postFinished   postState = "FinishedPost"
)

// lookForBoot is the time between the discovery of the devices and the boot
// from one, as a part of POST.Duration.
const lookForBoot = 4

// state is the state of a system that began to boot from target that long ago.
func (p POST) state(since time.Duration, target Target) postState {
	disk := target == Hdd || target == None || target == ""
	switch {
	case since < p.Duration:
		return inPost
	case p.NoDisk && disk, since < p.Duration+p.Duration/lookForBoot:
		return postDiscovered
	}
	return postFinished
}

// postState is the system's state now, and when its devices had been
// discovered.
func (s *system) postState() (state postState, discovered time.Time) {
	if s.power() == Off {
		return postOff, time.Time{}
	}
	s.mu.Lock()
	booted, target, reset := s.booted, s.target, s.lastReset
	s.mu.Unlock()
	state = s.POST.state(time.Since(booted), target)
	if state == inPost {
		return state, time.Time{}
	}
	return state, reset.Add(s.POST.Duration)
}

// addPOST adds the state to the system's resource.
func (s *system) addPOST(to resource) {
	if s.POST.Duration == 0 {
		return
	}
	state, discovered := s.postState()
	hpe := resource{"@odata.type": "#HpeComputerSystemExt.v2_12_0.HpeComputerSystemExt", "PostState": state, "PostDiscoveryCompleteTimeStamp": nil}
	if !discovered.IsZero() {
		hpe["PostDiscoveryCompleteTimeStamp"] = discovered.UTC().Format(time.RFC3339)
	}
	if state == inPost {
		to["BootProgress"] = resource{"LastState": "MemoryInitializationStarted"}
	}
	to["Oem"] = resource{"Hpe": hpe}
}

// bootRefused is what a write of Boot is answered now, or nil.
func (s *system) bootRefused() *message {
	if s.POST.Duration == 0 {
		return nil
	}
	if state, _ := s.postState(); state != inPost {
		return nil
	}
	return &message{ID: "iLO.2.14.UnableToModifyDuringSystemPOST", Severity: "Warning",
		Text:       "Unable to modify the value while the system is in POST or powered off.",
		Resolution: "Modify the value when the system is not in POST."}
}
