package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/google/uuid"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/journal"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
)

// machines handles Machines' explanations, consoles and verbs.
type machines struct {
	store     *store.Store
	cache     *store.Cache
	decider   Decider
	events    *journal.Journal[api.Event]
	decisions *journal.Journal[api.Decision]
	console   func(ctx context.Context, m *api.Machine) (io.ReadWriteCloser, error)
	lines     func(m *api.Machine, n int) []api.ConsoleLine
	sensors   func(machine string) (api.Sensors, bool)
	objects   *objects
	journals  *journals
	streams   *streams
}

func (h *machines) routes() []route {
	const one = "/v1/machines/{name}"
	routes := []route{
		{method: "GET", path: one + "/explain", tag: "Machine", role: viewer, summary: "Why a Machine, or the owner of a MAC, is in its current state",
			out: api.Explanation{}, handle: h.explain},
		{method: "GET", path: one + "/console", tag: "Machine", role: operator, stream: true, status: http.StatusSwitchingProtocols, audited: true,
			summary: "Open the serial console: HTTP/1.1 Upgrade to " + api.ConsoleProtocol + ", then raw bytes", handle: h.openConsole},
		{method: "GET", path: one + "/console/log", tag: "Machine", role: operator, summary: "The last lines of the serial console, as bootd received them",
			out: api.ConsoleLog{}, handle: h.consoleLog},
		{method: "GET", path: one + "/sensors", tag: "Machine", role: viewer, summary: "What the Machine's sensors measured when its BMC was last asked",
			out: api.Sensors{}, handle: h.readSensors},
	}
	for _, v := range []api.Verb{api.VerbReprovision, api.VerbPower, api.VerbInspect, api.VerbIdentify, api.VerbResetBMC} {
		routes = append(routes, route{method: "POST", path: one + "/" + string(v), tag: "Machine", role: operator, audited: true,
			summary: "Request of a Machine, once per id: " + string(v), in: api.Request{}, out: api.Request{}, status: http.StatusAccepted,
			handle: func(c *call) error { return h.verb(c, v) }})
	}
	return routes
}

// readSensors returns the last readings, or a problem that says why there are none.
func (h *machines) readSensors(c *call) error {
	m, err := store.Get[api.Machine](c.r.Context(), h.store, c.name())
	if err != nil {
		return err
	}
	if now, ok := h.sensors(m.Metadata.Name); ok {
		return c.json(http.StatusOK, now)
	}
	switch {
	case m.Spec.BMC == nil:
		return problem(http.StatusConflict, "Machine %s has no spec.bmc, and so no sensors", c.name())
	case m.Status.Phase != api.PhaseActive:
		return problem(http.StatusConflict, "Machine %s is %s: sensors are read while it is Active", c.name(), m.Status.Phase)
	}
	return problem(http.StatusConflict, "no sensors of Machine %s were read in the last 15 minutes: weftctl explain machine %[1]s says whether its BMC answers; by IPMI they are not read", c.name())
}

// verb writes a request into the Machine's status.
func (h *machines) verb(c *call, v api.Verb) error {
	r, err := c.request(v)
	if err != nil {
		return err
	}
	var answer api.Request
	repeated := false
	_, err = store.Mutate(c.r.Context(), h.store, c.name(), func(m *api.Machine) error {
		repeated = slices.ContainsFunc(m.Status.Requests, func(old api.Request) bool { return old.ID == r.ID })
		added, err := machine.AddRequest(m, r)
		if err != nil {
			return problem(http.StatusUnprocessableEntity, "%s", err)
		}
		answer = added
		if repeated {
			return store.ErrUnchanged
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !repeated {
		c.changed = true
		c.diff = []api.Change{{Pointer: "/status/requests", New: answer}}
	}
	return c.json(http.StatusAccepted, answer)
}

// request reads the body of a verb; an empty one requests the verb without options.
func (c *call) request(v api.Verb) (api.Request, error) {
	raw, err := c.body(maxBoot)
	if err != nil {
		return api.Request{}, err
	}
	var r api.Request
	if len(raw) > 0 {
		if err := api.DecodeStrict(raw, &r); err != nil {
			return api.Request{}, err
		}
	}
	if r.Verb != "" && r.Verb != v {
		p := problem(http.StatusUnprocessableEntity, "the body names another verb than the path")
		p.Errors = api.FieldErrors{{Pointer: "/verb", Message: fmt.Sprintf("%q is not %s", r.Verb, v)}}
		return api.Request{}, p
	}
	if len(r.ID) > 128 || len(r.Argument) > 128 {
		return api.Request{}, problem(http.StatusUnprocessableEntity, "id and argument have at most 128 characters")
	}
	if r.ID == "" {
		r.ID = uuid.NewString()
	}
	return api.Request{ID: r.ID, Verb: v, Argument: r.Argument, By: c.who.name}, nil
}
