package server

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/admission"
)

// route is one operation of the API.
type route struct {
	method, path string
	summary      string
	tag          string
	role         role             // required of a person
	public       bool             // callers need not be authenticated
	local        bool             // on the unix socket only, for any caller
	host         func(*call) bool // whether a host may call it; nil: no host may
	stream       bool             // no time limit
	audited      bool             // may change something
	handle       func(*call) error

	// For the OpenAPI document.
	query   []parameter
	in, out any // a value of the body's type, or a *huma.Schema; nil: none
	inType  string
	outType string
	status  int // of a successful answer. Default: 200
}

// parameter is a query parameter.
type parameter struct{ name, doc, kind string }

func (rt route) String() string { return rt.method + " " + rt.path }

// route registers every route and builds the OpenAPI document.
func (s *Server) route() error {
	doc := newDocument()
	apiOf := humago.New(s.mux, huma.Config{OpenAPI: doc.OpenAPI})
	for _, rt := range s.routes() {
		op, err := doc.operation(rt)
		if err != nil {
			return err
		}
		doc.AddOperation(op)
		apiOf.Adapter().Handle(op, func(ctx huma.Context) {
			r, w := humago.Unwrap(ctx)
			s.serve(rt, w, r)
		})
	}
	var err error
	if s.openapi, err = doc.MarshalJSON(); err != nil {
		return err
	}
	s.mux.HandleFunc("/", s.unknown)
	return nil
}

// routes collects the groups of routes.
func (s *Server) routes() []route {
	c := s.conf
	writes := &writes{store: c.Store, cache: c.Cache, turns: newTurns()}
	objects := &objects{
		store: c.Store, cache: c.Cache, hub: c.Hub, compiler: c.Compiler, zones: c.Zones, recovery: c.Recovery,
		world: admission.Follow(c.Cache), writes: writes, streams: s.streams,
	}
	journals := &journals{cache: c.Cache, events: c.Events, decisions: c.Decisions, auditLog: c.AuditLog, streams: s.streams}
	machines := &machines{
		store: c.Store, cache: c.Cache, decider: c.Decider, events: c.Events, decisions: c.Decisions, console: c.Console, lines: c.ConsoleLines, sensors: c.Sensors,
		objects: objects, journals: journals, streams: s.streams,
	}
	trust := &bmcTrust{store: c.Store, present: c.Present}
	reach := &reach{store: c.Store, cache: c.Cache, hub: c.Hub, auth: s.auth, objects: objects, channels: s.channels, streams: s.streams}
	blobs := &blobs{blobs: c.Blobs, cache: c.Cache, writes: writes, streams: s.streams}
	boots := &boots{decider: c.Decider, hub: c.Hub, blobs: blobs, loaders: c.Loaders, limit: newLimiter(5, 50), ranges: newLimiter(500, 2000), streams: s.streams, log: c.Log}
	upkeep := &upkeep{recovery: c.Recovery, backup: c.Backup, streams: s.streams, log: c.Log}
	networks := &networks{cache: c.Cache, networks: c.Networks, hub: c.Hub}
	guests := &guests{store: c.Store, cache: c.Cache, objects: objects}
	loads := &loads{cache: c.Cache, hub: c.Hub}
	zones := &zones{c.Zones}

	var all []route
	for _, k := range api.Kinds() {
		all = append(all, objects.routes(k)...)
	}
	all = append(all, machines.routes()...)
	all = append(all, trust.routes()...)
	all = append(all, networks.routes()...)
	all = append(all, guests.routes()...)
	all = append(all, reach.routes()...)
	all = append(all, zones.routes()...)
	all = append(all, loads.routes()...)
	all = append(all, blobs.routes()...)
	all = append(all, journals.routes()...)
	all = append(all, upkeep.backupRoutes()...)
	all = append(all, upkeep.recoveryRoutes()...)
	all = append(all, boots.routes()...)
	return append(all, s.serviceRoutes()...)
}

// serve runs one request through identity, authorisation, handler and audit.
func (s *Server) serve(rt route, w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	c := &call{w: w, r: r, rc: http.NewResponseController(w)}
	c.extend(bodyTime)
	if rt.stream {
		open := s.metrics.streams.WithLabelValues(rt.String())
		open.Inc()
		defer open.Dec()
		defer s.streams.lasts.leave(c)
	}
	if err := s.guarded(c, rt); err != nil {
		s.refuse(c, err)
	}
	s.metrics.answered(rt, c.status, time.Since(start))
	if rt.audited {
		s.audit(c)
	}
}

// guarded turns a panic into an error: net/http would log it like a client's error.
func (s *Server) guarded(c *call, rt route) (err error) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("a handler panicked", "route", rt, "panic", v, "stack", string(debug.Stack()))
			err = problem(http.StatusInternalServerError, "this is a bug in bootd; its log says where")
		}
	}()
	return s.answer(c, rt)
}

func (s *Server) answer(c *call, rt route) error {
	if !rt.public {
		var err error
		if c.who, err = s.auth.identify(c.r); err != nil {
			return err
		}
	}
	if rt.stream && c.who.host != nil {
		s.streams.lasts.enter(c) // before it is authorized, so that no revocation can happen in between
	}
	if err := s.auth.authorize(c, rt); err != nil {
		return err
	}
	return rt.handle(c)
}

// refuse answers with a problem, unless an answer has already begun.
func (s *Server) refuse(c *call, err error) {
	if c.status != 0 {
		s.log.Debug("an answer was interrupted", "path", c.r.URL.Path, "peer", c.who.from, "error", err)
		return
	}
	p := problemOf(err)
	c.status = p.Status
	var told *api.Problem
	if p.Status >= http.StatusInternalServerError && !errors.As(err, &told) { // a deliberate problem has been recorded by its author
		s.log.Error("a request failed", "method", c.r.Method, "path", c.r.URL.Path, "status", p.Status, "error", err)
	}
	writeProblem(c.w, p)
}

// audit records changes, and attempts that were refused for lack of a role.
func (s *Server) audit(c *call) {
	known := c.who.role > anonymous || c.who.host != nil
	if s.conf.Audit == nil || !c.changed && (c.status != http.StatusForbidden || !known) {
		return
	}
	s.conf.Audit(api.AuditRecord{
		Time: time.Now().UTC(), Who: c.who.name, Role: c.who.roleName(), From: c.who.from,
		Method: c.r.Method, Path: auditPath(c.r.URL), Status: c.status, Diff: c.diff,
	})
}

// auditPath is the request's path, without credentials.
func auditPath(u *url.URL) string {
	q := u.Query()
	if !q.Has("ticket") {
		return u.RequestURI()
	}
	q.Del("ticket")
	return (&url.URL{Path: u.Path, RawQuery: q.Encode()}).RequestURI()
}

// unknown answers requests without a route: 405 where another method has one.
func (s *Server) unknown(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodDelete} {
		probe := r.Clone(r.Context())
		probe.Method = method
		if _, pattern := s.mux.Handler(probe); pattern != "/" {
			allowed = append(allowed, method)
		}
	}
	if len(allowed) == 0 {
		writeProblem(w, problem(http.StatusNotFound, "%s does not exist: /openapi.json lists all paths", r.URL.Path))
		return
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	detail := "%s is not allowed here; want one of %s"
	if strings.HasPrefix(r.URL.Path, "/v1/hostspecs") {
		detail = "%s is not allowed here: a HostSpec is compiled from other objects, change those; want one of %s"
	}
	writeProblem(w, problem(http.StatusMethodNotAllowed, detail, r.Method, strings.Join(allowed, ", ")))
}

func (s *Server) serviceRoutes() []route {
	metrics := promhttp.HandlerFor(s.conf.Metrics, promhttp.HandlerOpts{})
	return []route{
		{method: "GET", path: "/healthz", public: true, tag: "service", summary: "Whether bootd is alive", outType: "text/plain",
			handle: func(c *call) error { return c.text(http.StatusOK, "ok\n") }},
		{method: "GET", path: "/readyz", public: true, tag: "service", summary: "Whether bootd is ready, and if not, why", outType: "text/plain",
			handle: s.readyz},
		{method: "GET", path: "/metrics", role: viewer, tag: "service", summary: "Prometheus metrics", outType: "text/plain",
			handle: func(c *call) error { c.status = http.StatusOK; metrics.ServeHTTP(c.w, c.r); return nil }},
		{method: "GET", path: "/openapi.json", public: true, tag: "service", summary: "This document", out: map[string]any{},
			handle: func(c *call) error {
				c.w.Header().Set("Content-Type", "application/vnd.oai.openapi+json")
				c.write(http.StatusOK, s.openapi)
				return nil
			}},
	}
}

func (c *call) text(status int, text string) error {
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.write(status, []byte(text))
	return nil
}

func (s *Server) readyz(c *call) error {
	var reasons []string
	if err := s.conf.Store.Ready(c.r.Context()); err != nil {
		reasons = append(reasons, "the store: "+err.Error())
	}
	select {
	case <-s.conf.Cache.Synced():
	default:
		reasons = append(reasons, "the cache has not been filled yet")
	}
	if len(reasons) > 0 {
		return c.text(http.StatusServiceUnavailable, strings.Join(reasons, "\n")+"\n")
	}
	return c.text(http.StatusOK, "ok\n")
}

// document is the OpenAPI document being built.
type document struct {
	*huma.OpenAPI
	schemas huma.Registry
}

func newDocument() *document {
	r := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	for from, to := range map[reflect.Type]reflect.Type{
		// Huma writes format ipv4 and int32 for these, which is too narrow.
		reflect.TypeFor[netip.Addr](): reflect.TypeFor[addrText](),
		reflect.TypeFor[uint32]():     reflect.TypeFor[unsigned32](),
		reflect.TypeFor[api.MAC]():    reflect.TypeFor[macText](),
		reflect.TypeFor[api.SHA256](): reflect.TypeFor[digestText](),
	} {
		r.RegisterTypeAlias(from, to)
	}
	return &document{schemas: r, OpenAPI: &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title: "rackweft", Version: strings.TrimPrefix(api.Version, "rackweft/"),
			Description: "bootd's API. Errors are RFC 9457 problem documents.",
			License:     &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
		},
		Components: &huma.Components{Schemas: r, SecuritySchemes: map[string]*huma.SecurityScheme{
			"certificate": {Type: "mutualTLS", Description: "A client certificate of the Site's CA."},
			"bearer":      {Type: "http", Scheme: "bearer"},
		}},
	}}
}

func (d *document) operation(rt route) (*huma.Operation, error) {
	op := &huma.Operation{
		Method: rt.method, Path: rt.path, Summary: rt.summary, Tags: []string{rt.tag}, OperationID: operationID(rt),
		Responses: map[string]*huma.Response{
			statusText(rt.status): {Description: "Done.", Content: d.content(rt.outType, rt.out)},
			"default":             {Description: "What is wrong.", Content: d.content("application/problem+json", api.Problem{})},
		},
	}
	if !rt.public {
		op.Security = []map[string][]string{{"certificate": {}}, {"bearer": {}}}
		if rt.role > anonymous {
			op.Description = "Needs role " + rt.role.String() + "."
		}
	}
	for _, part := range strings.Split(rt.path, "/") {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			op.Parameters = append(op.Parameters, &huma.Param{Name: strings.TrimSuffix(name, "}"), In: "path", Required: true, Schema: &huma.Schema{Type: "string"}})
		}
	}
	for _, p := range rt.query {
		op.Parameters = append(op.Parameters, &huma.Param{Name: p.name, In: "query", Description: p.doc, Schema: &huma.Schema{Type: p.kind}})
	}
	if rt.in != nil || rt.inType != "" {
		op.RequestBody = &huma.RequestBody{Required: true, Content: d.content(rt.inType, rt.in)}
	}
	return op, nil
}

func (d *document) content(mediaType string, v any) map[string]*huma.MediaType {
	if v == nil && mediaType == "" {
		return nil
	}
	if mediaType == "" {
		mediaType = "application/json"
	}
	m := new(huma.MediaType)
	switch v := v.(type) {
	case nil:
	case *listOf:
		m.Schema = d.list(v.kind)
	default:
		m.Schema = d.schemas.Schema(reflect.TypeOf(v), true, "")
	}
	return map[string]*huma.MediaType{mediaType: m}
}

// listOf represents a list of one kind; its Go type holds raw JSON.
type listOf struct{ kind api.Kind }

func (d *document) list(k api.Kind) *huma.Schema {
	text := &huma.Schema{Type: huma.TypeString}
	return &huma.Schema{Type: huma.TypeObject, Required: []string{"apiVersion", "kind", "metadata", "items"}, Properties: map[string]*huma.Schema{
		"apiVersion": text,
		"kind":       text,
		"metadata":   d.schemas.Schema(reflect.TypeFor[api.ListMeta](), true, ""),
		"items":      {Type: huma.TypeArray, Items: d.schemas.Schema(reflect.TypeOf(k.New()), true, "")},
	}}
}

// operationID is such as getMachinesNameExplain.
func operationID(rt route) string {
	id := strings.ToLower(rt.method)
	words := strings.FieldsFunc(strings.TrimPrefix(rt.path, "/v1"), func(r rune) bool { return !(r >= 'a' && r <= 'z') })
	for _, w := range slices.DeleteFunc(words, func(w string) bool { return w == "" }) {
		id += strings.ToUpper(w[:1]) + w[1:]
	}
	return id
}
