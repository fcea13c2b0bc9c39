package machine

import (
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
)

// facts are what a step with a Machine is decided by. What takes a look at all
// objects of a kind is a function, as few steps need it.
type facts struct {
	machine *api.Machine
	site    api.SiteSpec
	// restored says that the Site was restored and it is not known yet what its hosts run.
	restored bool
	// claimed says that a host unknown since then runs under the Machine's name.
	claimed bool
	// missing names the first thing that the spec refers to and that does not
	// exist or is not ready; unserved is a warning to go with the words that all exists.
	missing, unserved string
	// held is what keeps an action back from the BMC after an error.
	held func(action) hold
	// healthRead is when the BMC was last asked how the server is.
	healthRead time.Time
	// required is the trust level that a Machine's boots must reach.
	required func(*api.Machine) trust.Requirement
	// guests are those that are on the Machine.
	guests func() []*api.Guest
	// said is the last line of the BootAttempt on its console, empty when there is none.
	said func() string
	// inputs are the versions of the objects that a BootAttempt of the Machine depends on.
	inputs func() []string
	// opened counts the other Machines with an open BootAttempt, switched those
	// whose power is being changed.
	opened, switched func() load
}

// load counts Machines: all, and those in the Machine's rack.
type load struct{ total, inRack int }

// facts gathers what a step with the Machine is decided by.
func (c *Controller) facts(m *api.Machine) facts {
	return facts{
		machine:    m,
		site:       site.Spec(c.Cache),
		restored:   store.Held(c.Cache),
		claimed:    store.Claimed(c.Cache, m),
		missing:    missing(c.Cache, m),
		unserved:   unserved(c.Cache, m),
		held:       func(a action) hold { return c.bmcs().held(m, a) },
		required:   func(m *api.Machine) trust.Requirement { return Required(c.Cache, m) },
		guests:     func() []*api.Guest { return guestsOf(c.Cache, m) },
		said:       func() string { return c.Said(m) },
		inputs:     func() []string { return inputs(c.Cache, m) },
		healthRead: c.looks.last(m.Metadata.Name),
		opened: func() load {
			return count(c.Cache, m, func(other *api.Machine) bool { return other.Status.Attempt.Open() })
		},
		switched: func() load { return count(c.Cache, m, powerInMotion) },
	}
}

// count counts the Machines but m for which that holds.
func count(c *store.Cache, m *api.Machine, holds func(*api.Machine) bool) (l load) {
	for _, other := range store.CachedList[api.Machine](c) {
		if other.Metadata.UID == m.Metadata.UID || !holds(other) {
			continue
		}
		l.total++
		if other.Spec.Location.Rack == m.Spec.Location.Rack {
			l.inRack++
		}
	}
	return l
}

// guestsOf are the Guests on a Machine.
func guestsOf(c *store.Cache, m *api.Machine) (on []*api.Guest) {
	for _, g := range store.CachedList[api.Guest](c) {
		if g.Status.HostUID == m.Metadata.UID {
			on = append(on, g)
		}
	}
	return on
}
