package machine

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
)

const maxRequests = 10

// AddRequest writes a verb into the Machine's status for the controller to
// serve. A repeated id answers with the existing request.
func AddRequest(m *api.Machine, r api.Request) (api.Request, error) {
	for _, old := range m.Status.Requests {
		if old.ID == r.ID {
			return old, nil
		}
	}
	if err := checkRequest(m, r); err != nil {
		return r, err
	}
	r.State, r.Time = api.RequestPending, time.Now().UTC()
	m.Status.Requests = append(m.Status.Requests, r)
	if n := len(m.Status.Requests); n > maxRequests {
		m.Status.Requests = slices.Delete(m.Status.Requests, 0, n-maxRequests)
	}
	return r, nil
}

func checkRequest(m *api.Machine, r api.Request) error {
	if IsDiscovered(m) {
		return fmt.Errorf("machine %s is only discovered: apply a Machine with its MAC first", m.Metadata.Name)
	}
	if m.Spec.BMC == nil {
		return fmt.Errorf("machine %s has no BMC in its spec, so nothing can be asked of it", m.Metadata.Name)
	}
	switch r.Verb {
	case api.VerbPower:
		if !slices.Contains([]string{"on", "off", "reset"}, r.Argument) {
			return fmt.Errorf("power %q: it may be on, off or reset", r.Argument)
		}
	case api.VerbIdentify:
		if !slices.Contains([]string{"on", "off"}, r.Argument) {
			return fmt.Errorf("identify %q: it may be on or off", r.Argument)
		}
	case api.VerbReprovision, api.VerbInspect, api.VerbResetBMC:
		if m.Spec.State != api.StateActive && r.Verb == api.VerbReprovision {
			return fmt.Errorf("machine %s has state %s: only one with state Active is provisioned", m.Metadata.Name, m.Spec.State)
		}
	default:
		return fmt.Errorf("no verb is called %q", r.Verb)
	}
	return nil
}

func pending(m *api.Machine) *api.Request {
	for i := range m.Status.Requests {
		if s := m.Status.Requests[i].State; s == api.RequestPending || s == api.RequestRunning {
			return &m.Status.Requests[i]
		}
	}
	return nil
}

// words are a request as a person says it: "power reset", "inspect".
func words(r *api.Request) string { return strings.TrimSpace(string(r.Verb) + " " + r.Argument) }

// failureOf is what a request says of an error, without its own name.
func failureOf(r *api.Request, failure string) string {
	return strings.TrimPrefix(failure, words(r)+": ")
}

func setRequest(m *api.Machine, id, state, message string) {
	for i := range m.Status.Requests {
		if m.Status.Requests[i].ID == id {
			m.Status.Requests[i].State, m.Status.Requests[i].Message = state, message
		}
	}
}
