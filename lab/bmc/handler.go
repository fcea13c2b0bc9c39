package bmc

import (
	"encoding/json"
	"net/http"
	"strings"
)

const managerResetPath = root + "/Managers/1/Actions/Manager.Reset"

// Handler is the service without its listener and its certificate.
func (s *Server) Handler() http.Handler {
	open := http.NewServeMux() // requests without login (DSP0266 §13.3.4)
	open.HandleFunc("GET /redfish", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, resource{"v1": root + "/"}) })
	open.HandleFunc("GET "+root, s.get)
	open.HandleFunc("GET "+root+"/{$}", s.get)
	open.HandleFunc("GET "+root+"/odata", s.odata)
	open.HandleFunc("POST "+sessionsPath, s.sessions.create)
	open.HandleFunc("POST "+sessionsPath+"/Members", s.sessions.create)

	closed := http.NewServeMux()
	closed.HandleFunc("GET "+root+"/", s.get)
	closed.HandleFunc("PATCH "+root+"/", s.patch)
	closed.HandleFunc("DELETE "+sessionsPath+"/{id}", s.sessions.remove)
	closed.HandleFunc("POST "+managerResetPath, s.resetManager)
	closed.HandleFunc("GET "+monitorsPath+"/{id}", s.tasks.monitor)
	if s.config.Events.stream() {
		closed.HandleFunc("GET "+ssePath, s.stream)
	}
	if s.config.Events.post() {
		closed.HandleFunc("POST "+subscriptionsPath, s.subscriptions.subscribe)
		closed.HandleFunc("DELETE "+subscriptionsPath+"/{id}", s.subscriptions.unsubscribe)
	}
	if s.config.Events != NoEvents {
		closed.HandleFunc("POST "+testEventAction, s.submitTest)
	}
	for _, one := range s.systems {
		one.route(closed)
	}
	closed.HandleFunc("/", s.refuse)

	open.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if !s.sessions.authenticated(r) {
			w.Header().Set("WWW-Authenticate", `Basic realm="rackweft lab BMC"`)
			fail(w, http.StatusUnauthorized, message{ID: "Base.1.16.NoValidSession", Severity: "Critical",
				Text:       "There is no valid session established with the implementation.",
				Resolution: "Establish a session before attempting any operations."})
			return
		}
		if s.sessions.changeDemanded(r) {
			fail(w, http.StatusForbidden, passwordChange())
			return
		}
		closed.ServeHTTP(w, r)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.injected(w) {
			return
		}
		w.Header().Set("OData-Version", "4.0")
		open.ServeHTTP(w, r)
	})
}

func (s *Server) odata(w http.ResponseWriter, _ *http.Request) {
	values := []resource{}
	for _, name := range []string{"Systems", "Chassis", "Managers", "SessionService", "AccountService", "EventService", "UpdateService", "TaskService"} {
		values = append(values, resource{"name": name, "kind": "Singleton", "url": root + "/" + name})
	}
	reply(w, http.StatusOK, resource{"@odata.context": root + "/$metadata", "value": values})
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) {
	found, ok := s.tree()[strings.TrimRight(r.URL.Path, "/")]
	if !ok {
		fail(w, http.StatusNotFound, missing(r.URL.Path))
		return
	}
	for name := range r.URL.Query() {
		// DSP0266 §7.3: an unsupported query parameter that starts with $ is 501, others are ignored.
		if strings.HasPrefix(name, "$") {
			fail(w, http.StatusNotImplemented, message{ID: "Base.1.16.QueryNotSupported", Severity: "Warning",
				Text:       "Querying is not supported by the implementation.",
				Resolution: "Remove the query parameters and resubmit the request."})
			return
		}
	}
	_, tag, err := encode(found)
	if err != nil {
		fail(w, http.StatusInternalServerError, internal(err))
		return
	}
	if given := r.Header.Get("If-None-Match"); given != "" && matches(given, tag) {
		w.Header().Set("ETag", tag)
		w.WriteHeader(http.StatusNotModified)
		return
	}
	reply(w, http.StatusOK, found)
}

// matches compares an If-Match or If-None-Match header with a tag, weakly: some
// clients drop the W/.
func matches(header, tag string) bool {
	plain := strings.TrimPrefix(tag, "W/")
	for one := range strings.SplitSeq(header, ",") {
		one = strings.TrimPrefix(strings.TrimSpace(one), "W/")
		if one == "*" || one == plain {
			return true
		}
	}
	return false
}

// change applies the properties of a PATCH.
type change func(*http.Request, map[string]any) (*message, error)

// writable lists the resources that take a PATCH.
func (s *Server) writable() map[string]change {
	all := map[string]change{
		root + "/SessionService": plain(s.sessions.patchService),
		accountPath:              plain(s.sessions.patchAccount),
	}
	for _, one := range s.systems {
		all[one.chassis] = plain(one.patchIndicator)
		if one.Machine != nil {
			all[one.path] = one.patchSystem
		}
		if one.media != nil {
			all[one.media.path] = one.media.patch
		}
	}
	return all
}

// patch changes the few writable resources.
func (s *Server) patch(w http.ResponseWriter, r *http.Request) {
	at := strings.TrimRight(r.URL.Path, "/")
	apply := s.writable()[at]
	if apply == nil {
		s.refuse(w, r)
		return
	}
	if given := r.Header.Get("If-Match"); given != "" {
		_, tag, err := encode(s.tree()[at])
		if err != nil {
			fail(w, http.StatusInternalServerError, internal(err))
			return
		}
		if !matches(given, tag) {
			fail(w, http.StatusPreconditionFailed, message{ID: "Base.1.16.PreconditionFailed", Severity: "Critical",
				Text:       "The ETag supplied did not match the ETag required to change this resource.",
				Resolution: "Read the resource again and resubmit the request with its ETag."})
			return
		}
	}
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	refused, err := apply(r, body)
	if err != nil {
		fail(w, http.StatusInternalServerError, internal(err))
		return
	}
	if refused != nil {
		fail(w, http.StatusBadRequest, *refused)
		return
	}
	reply(w, http.StatusOK, s.tree()[at])
}

// readBody reads a JSON object; if there is none it answers the request.
func readBody(w http.ResponseWriter, r *http.Request) (body map[string]any, ok bool) {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&body); err != nil {
		fail(w, http.StatusBadRequest, malformedJSON())
		return nil, false
	}
	return body, true
}

func plain(apply func(map[string]any) *message) change {
	return func(_ *http.Request, body map[string]any) (*message, error) { return apply(body), nil }
}

// refuse answers a method or path that the service does not support.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request) {
	if _, ok := s.tree()[strings.TrimRight(r.URL.Path, "/")]; !ok {
		fail(w, http.StatusNotFound, missing(r.URL.Path))
		return
	}
	w.Header().Set("Allow", "GET, HEAD")
	fail(w, http.StatusMethodNotAllowed, message{ID: "Base.1.16.OperationNotAllowed", Severity: "Critical",
		Text:       "The HTTP method is not allowed on this resource.",
		Resolution: "None."})
}
