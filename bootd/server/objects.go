package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/admission"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
)

// objects are read and written in the same way, whatever their kind.
type objects struct {
	store    *store.Store
	cache    *store.Cache
	hub      Hub
	compiler Compiler
	zones    Zones
	recovery Recovery
	world    *admission.World
	writes   *writes
	streams  *streams
}

// routes are the routes that every kind has; a computed kind is only read.
func (h *objects) routes(k api.Kind) []route {
	list, one := "/v1/"+k.Plural, "/v1/"+k.Plural+"/{name}"
	watch := []parameter{
		{"watch", "Newline-delimited WatchFrames instead of a list.", "boolean"},
		{"resourceVersion", "Watch from this revision on; without it, all existing objects come first.", "string"},
	}
	get := route{method: "GET", path: one, tag: k.Name, role: viewer, summary: "Read a " + k.Name, out: k.New(),
		handle: func(c *call) error { return h.get(c, k) }}
	if k.Computed {
		get.host = ownName
		return []route{get,
			{method: "GET", path: list, tag: k.Name, role: viewer, summary: "List every " + k.Name, out: &listOf{k},
				handle: func(c *call) error { return h.list(c, k) }}}
	}
	write := writer(k)
	version := parameter{"resourceVersion", "Refuse with 409 unless this is still current.", "string"}
	dry := parameter{"dryRun", "Return the result, store nothing.", "boolean"}
	return []route{get,
		{method: "GET", path: list, tag: k.Name, role: viewer, summary: "List or watch every " + k.Name, query: watch, out: &listOf{k}, stream: true,
			handle: func(c *call) error { return h.listOrWatch(c, k) }},
		{method: "GET", path: one + "/status", tag: k.Name, role: viewer, summary: "Read the status of a " + k.Name,
			out: statusOf(k.New()).Interface(), handle: func(c *call) error { return h.status(c, k) }},
		{method: "PUT", path: one, tag: k.Name, role: write, summary: "Create a " + k.Name + ", or replace its spec, labels and annotations",
			query: []parameter{dry}, in: k.New(), out: k.New(), audited: true, handle: func(c *call) error { return h.put(c, k, c.name()) }},
		{method: "POST", path: list, tag: k.Name, role: write, summary: "Create a " + k.Name + " that does not exist yet", status: http.StatusCreated,
			query: []parameter{dry}, in: k.New(), out: k.New(), audited: true, handle: func(c *call) error { return h.put(c, k, "") }},
		{method: "DELETE", path: one, tag: k.Name, role: write, summary: "Delete a " + k.Name, status: http.StatusNoContent,
			query: []parameter{version}, audited: true, handle: func(c *call) error { return h.delete(c, k) }},
	}
}

// writer is the role required to change a kind: admin unless the kind permits operators.
func writer(k api.Kind) role {
	if k.Writer == api.RoleOperator {
		return operator
	}
	return admin
}

// read returns an object as clients see it.
func (h *objects) read(ctx context.Context, k api.Kind, name string) (api.Object, error) {
	if err := api.ValidateName(name); err != nil {
		return nil, problem(http.StatusNotFound, "there is no %s %q", k.Name, name)
	}
	if k.Computed {
		return h.compile(ctx, name)
	}
	o, err := h.store.Get(ctx, k, name)
	if err != nil {
		return nil, err
	}
	return h.fill(o), nil
}

func (h *objects) compile(ctx context.Context, name string) (api.Object, error) {
	m, ok := store.Cached[api.Machine](h.cache, name)
	if !ok || machine.IsDiscovered(m) {
		return nil, problem(http.StatusNotFound, "HostSpec %q does not exist: no Machine of that name is registered", name)
	}
	return h.compiler.Compile(ctx, m)
}

// fill adds to a copy what is kept in memory only.
func (h *objects) fill(o api.Object) api.Object {
	m, ok := o.(*api.Machine)
	if !ok || m.Status.Host == nil {
		return o
	}
	host := *m.Status.Host
	if reported, ok := h.hub.Reported(m.Metadata.Name); ok && reported.UID == m.Metadata.UID {
		host = *reported // newer than the store has it
	}
	host.LastHeartbeat, host.Connected = h.hub.Heartbeat(m.Metadata.Name)
	if b := h.hub.BGP(m.Metadata.Name); b != nil {
		short := *b
		short.Routes, short.Omitted = nil, 0
		host.BGP = &short
	}
	filled := *m // which may be shared
	filled.Status.Host = &host
	return &filled
}

func (h *objects) get(c *call, k api.Kind) error {
	o, err := h.read(c.r.Context(), k, c.name())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, o)
}

func (h *objects) status(c *call, k api.Kind) error {
	o, err := h.read(c.r.Context(), k, c.name())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, statusOf(o).Interface())
}

func (h *objects) listOrWatch(c *call, k api.Kind) error {
	watch, err := c.flag("watch")
	if err != nil {
		return err
	}
	if watch && c.r.Method == http.MethodGet {
		return h.watch(c, k)
	}
	return h.list(c, k)
}

func (h *objects) list(c *call, k api.Kind) error {
	objects, revision, err := h.all(c.r.Context(), k)
	if err != nil {
		return err
	}
	l := api.List{
		TypeMeta: api.TypeMeta{APIVersion: api.Version, Kind: k.Name + "List"},
		Metadata: api.ListMeta{ResourceVersion: strconv.FormatInt(revision, 10)},
		Items:    make([]json.RawMessage, len(objects)),
	}
	for i, o := range objects {
		if l.Items[i], err = api.Encode(o); err != nil {
			return err
		}
	}
	return c.list(l)
}

// all reads from the store, not the cache: the revision of an idle cache can be so old that no watch can continue
// from it.
func (h *objects) all(ctx context.Context, k api.Kind) ([]api.Object, int64, error) {
	if k.Computed {
		return h.compileAll(ctx)
	}
	objects, revision, err := h.store.List(ctx, k)
	for i := range objects {
		objects[i] = h.fill(objects[i])
	}
	return objects, revision, err
}

func (h *objects) compileAll(ctx context.Context) ([]api.Object, int64, error) {
	revision := h.cache.Revision()
	var all []api.Object
	for _, m := range store.CachedList[api.Machine](h.cache) {
		if machine.IsDiscovered(m) {
			continue
		}
		spec, err := h.compiler.Compile(ctx, m)
		if err != nil {
			return nil, 0, err
		}
		all = append(all, spec)
	}
	return all, revision, nil
}

// decode reads the object of a body. Its name must be the path's (any, when that is empty), and its status is
// ignored.
func (c *call) decode(k api.Kind, name string) (api.Object, error) {
	raw, err := c.body(maxObject)
	if err != nil {
		return nil, err
	}
	o := k.New()
	if err := api.DecodeStrict(raw, o); err != nil {
		return nil, err
	}
	o.SetDefaults()
	m := o.Meta()
	if m.Name == "" {
		m.Name = name
	}
	if name != "" && m.Name != name {
		return nil, invalid(o, api.FieldErrors{{Pointer: "/metadata/name", Message: fmt.Sprintf("%q is not the name in the path, %q", m.Name, name)}})
	}
	statusOf(o).SetZero()
	return o, nil
}

// put creates the object of the body or replaces the existing one; without a name it only creates.
func (h *objects) put(c *call, k api.Kind, name string) error {
	dry, err := c.flag("dryRun")
	if err != nil {
		return err
	}
	body, err := c.decode(k, name)
	if err != nil {
		return err
	}
	if e := body.Validate(); len(e) > 0 {
		return invalid(body, e)
	}
	ctx := c.r.Context()
	w, err := h.writes.begin(ctx, body)
	if err != nil {
		return err
	}
	defer w.end()
	current, err := h.current(ctx, k, body.Meta().Name)
	if err != nil {
		return err
	}
	if current != nil && name == "" {
		return problem(http.StatusConflict, "%s %q exists already", k.Name, current.Meta().Name)
	}
	if err := agree(k, body, current); err != nil {
		return err
	}
	next := merge(body, current)
	if err := h.mayLower(c, next, current); err != nil {
		return err
	}
	if c.who.role < admin {
		if why := admission.OnlyAdmins(h.world, next, current); why != "" {
			return problem(http.StatusForbidden, "%s", why)
		}
	}
	verdict := admission.Judge(h.world, next, current)
	if len(verdict.Errors) > 0 {
		return invalid(next, verdict.Errors)
	}
	for _, text := range verdict.Warnings {
		c.w.Header().Add("Warning", warning(text))
	}
	if dry {
		drops, err := h.zones.Drops(ctx, next)
		if err != nil {
			return err
		}
		for _, d := range drops {
			c.w.Header().Add("Warning", warning(d))
		}
		c.w.Header().Set(api.OutcomeHeader, foreseen(current, next))
		redact(next)
		return c.json(http.StatusOK, next)
	}
	return h.save(c, w, admitted{next: next, current: current, version: body.Meta().ResourceVersion, takeover: verdict.Takeover})
}

// admitted is a write that admission permits.
type admitted struct {
	next, current api.Object // current is nil for a new one
	version       string     // the resourceVersion that the client has read; "" for any
	takeover      []string   // the discovered Machines that it replaces
}

// save writes an admitted object and answers with it.
func (h *objects) save(c *call, w *write, a admitted) error {
	next, current := a.next, a.current
	// A client that disconnects must not interrupt the write.
	ctx, k := context.WithoutCancel(c.r.Context()), api.KindOf(next)
	w.failed = true
	// First, so that the MAC is never found with the discovered Machine; should bootd die here, the Machine is
	// discovered again.
	for _, name := range a.takeover {
		if err := h.store.Delete(ctx, machineKind(), name, ""); err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("replace the discovered Machine %s: %w", name, err)
		}
		c.changed = true
	}
	status := http.StatusOK
	if current == nil {
		status = http.StatusCreated
		if err := h.create(ctx, next); err != nil {
			return err
		}
	} else {
		uid := current.Meta().UID
		o, err := h.store.Mutate(ctx, k, next.Meta().Name, func(o api.Object) error {
			if o.Meta().UID != uid || a.version != "" && o.Meta().ResourceVersion != a.version {
				return &store.ConflictError{Kind: k.Name, Name: o.Meta().Name, Current: o.Meta().ResourceVersion}
			}
			replace(o, next)
			return nil
		})
		if err != nil {
			return err
		}
		next = o
	}
	w.failed = false
	w.wrote(next.Meta().ResourceVersion)
	done := api.OutcomeUnchanged
	if current == nil || current.Meta().ResourceVersion != next.Meta().ResourceVersion {
		c.changed, c.diff = true, difference(current, next)
		done = outcome(current, c.diff)
	}
	c.w.Header().Set(api.OutcomeHeader, done)
	redact(next)
	return c.json(status, h.fill(next))
}

func outcome(current api.Object, diff []api.Change) string {
	switch {
	case current == nil:
		return api.OutcomeCreated
	case len(diff) == 0: // its status has changed in the meantime
		return api.OutcomeUnchanged
	}
	return api.OutcomeConfigured
}

// foreseen is the outcome of a dry run. Values of a Secret can only be compared once sealed, so they count as
// changed.
func foreseen(current, next api.Object) string {
	if secret, ok := next.(*api.Secret); ok && current != nil && len(secret.Spec.Data) > 0 {
		return api.OutcomeConfigured
	}
	return outcome(current, difference(current, next))
}

func (h *objects) delete(c *call, k api.Kind) error {
	ctx := c.r.Context()
	if err := h.mayDelete(k); err != nil {
		return err
	}
	w, err := h.writes.beginDelete(ctx, k, c.name())
	if err != nil {
		return err
	}
	defer w.end()
	o, err := h.read(ctx, k, c.name())
	if err != nil {
		return err
	}
	if err := h.mayLower(c, nil, o); err != nil {
		return err
	}
	if who := h.world.Referrers(k, c.name()); len(who) > 0 {
		return problem(http.StatusConflict, "%s %q is still referred to by %s: change or delete that first", k.Name, c.name(), strings.Join(who, ", "))
	}
	ctx, w.failed = context.WithoutCancel(ctx), true
	if err := h.store.Delete(ctx, k, c.name(), c.r.URL.Query().Get("resourceVersion")); err != nil {
		return err
	}
	w.failed = false
	c.changed, c.diff = true, difference(o, nil)
	left, err := h.current(ctx, k, c.name())
	if err == nil && left != nil {
		w.wrote(left.Meta().ResourceVersion)
		return c.json(http.StatusAccepted, h.fill(left)) // finalizers are running
	}
	w.barrier(ctx)
	return c.empty(http.StatusNoContent)
}

// current is the stored object, nil when there is none.
func (h *objects) current(ctx context.Context, k api.Kind, name string) (api.Object, error) {
	o, err := h.store.Get(ctx, k, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return o, err
}

// mayLower permits only admins to lower the trust level that boots must reach.
func (h *objects) mayLower(c *call, next, current api.Object) error {
	if c.who.role >= admin || current == nil {
		return nil
	}
	if why := admission.LowersTrust(h.world, next, current); why != "" {
		return problem(http.StatusForbidden, "%s: role admin is needed; %s is %s", why, c.who.name, c.who.role)
	}
	return nil
}

// agree refuses a write to another object, or another version of it, than the client has read.
func agree(k api.Kind, body, current api.Object) error {
	m := body.Meta()
	if current == nil {
		if m.ResourceVersion != "" {
			return &store.ConflictError{Kind: k.Name, Name: m.Name}
		}
		return nil
	}
	now := current.Meta()
	if m.ResourceVersion != "" && m.ResourceVersion != now.ResourceVersion {
		return &store.ConflictError{Kind: k.Name, Name: m.Name, Current: now.ResourceVersion}
	}
	if m.UID != "" && m.UID != now.UID {
		p := problem(http.StatusConflict, "%s %q was deleted and recreated: its uid is now %s, not %s", k.Name, m.Name, now.UID, m.UID)
		p.ResourceVersion = now.ResourceVersion
		return p
	}
	return nil
}

// merge returns the resulting object: the body's spec, labels and annotations, and rackweft's own fields.
func merge(body, current api.Object) api.Object {
	next := api.KindOf(body).New()
	if current == nil {
		next.Meta().Name = body.Meta().Name
	} else {
		*next.Meta() = *current.Meta()
		statusOf(next).Set(statusOf(current))
	}
	replace(next, body)
	next.SetDefaults()
	return next
}

// replace gives o the spec, labels and annotations of from. A discovered Machine becomes a registered one.
func replace(o, from api.Object) {
	if m, ok := o.(*api.Machine); ok && machine.IsDiscovered(m) {
		m.Status.Phase, m.Status.LastSeen = "", time.Time{}
	}
	specOf(o).Set(specOf(from))
	o.Meta().Labels, o.Meta().Annotations = from.Meta().Labels, from.Meta().Annotations
	delete(o.Meta().Labels, api.DiscoveredLabel)
}

// redact removes what must never be returned.
func redact(o api.Object) {
	if secret, ok := o.(*api.Secret); ok {
		secret.Spec.Data = nil
	}
}

// specOf and statusOf are the fields that every stored kind has.
func specOf(o api.Object) reflect.Value   { return reflect.ValueOf(o).Elem().FieldByName("Spec") }
func statusOf(o api.Object) reflect.Value { return reflect.ValueOf(o).Elem().FieldByName("Status") }

func machineKind() api.Kind { return api.KindOf(new(api.Machine)) }

// warning is the value of a Warning header (RFC 7234, 5.5).
func warning(text string) string { return "299 rackweft " + strconv.QuoteToASCII(text) }
