package overlay

import (
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
)

// job is a part that can be applied.
type job struct {
	key     string
	network network
	notes   []string
	state   api.PartState // once all possible steps are done
}

func newJob(key string, n network, notes []string) job {
	j := job{key: key, network: n, notes: notes, state: api.PartApplied}
	if slices.ContainsFunc(notes, func(note string) bool { return strings.HasPrefix(note, "peer ") }) {
		j.state = api.PartFailed
	}
	return j
}

// note records a fault. The first one sets the state.
func (j *job) note(state api.PartState, text string) {
	j.notes = append(j.notes, text)
	if j.state == api.PartApplied {
		j.state = state
	}
}
