package bmc

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	managerResetPath = root + "/Managers/1/Actions/Manager.Reset"
	clearLogPath     = logPath + "/Actions/LogService.ClearLog"
)

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
	closed.HandleFunc("POST "+resetPath, s.reset)
	closed.HandleFunc("POST "+managerResetPath, s.resetManager)
	closed.HandleFunc("POST "+clearLogPath, func(w http.ResponseWriter, _ *http.Request) {
		s.events.clear()
		w.WriteHeader(http.StatusNoContent)
	})
	closed.HandleFunc("GET "+ssePath, s.stream)
	closed.HandleFunc("GET "+consoleURI, s.console.serve)
	closed.HandleFunc("/", s.refuse)

	open.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if !s.sessions.authenticated(r) {
			w.Header().Set("WWW-Authenticate", `Basic realm="rackweft lab BMC"`)
			fail(w, http.StatusUnauthorized, message{ID: "Base.1.16.NoValidSession", Severity: "Critical",
				Text:       "There is no valid session established with the implementation.",
				Resolution: "Establish a session before attempting any operations."})
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
	for _, name := range []string{"Systems", "Chassis", "Managers", "SessionService", "AccountService", "EventService", "UpdateService"} {
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

// patch changes the few writable resources.
func (s *Server) patch(w http.ResponseWriter, r *http.Request) {
	at := strings.TrimRight(r.URL.Path, "/")
	apply := map[string]func(*http.Request, map[string]any) (*message, error){
		systemPath:                          s.patchSystem,
		root + "/Chassis/1":                 plain(s.patchIndicator),
		root + "/SessionService":            plain(s.sessions.patchService),
		root + "/AccountService/Accounts/1": plain(s.sessions.patchAccount),
	}[at]
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
	body := map[string]any{}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&body); err != nil {
		fail(w, http.StatusBadRequest, malformedJSON())
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

func plain(apply func(map[string]any) *message) func(*http.Request, map[string]any) (*message, error) {
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

// patchSystem sets the boot override, the asset tag and the indicator; it
// changes nothing unless all of them are valid.
func (s *Server) patchSystem(r *http.Request, body map[string]any) (*message, error) {
	indicator := map[string]any{}
	tag := s.machine.AssetTag()
	for name, value := range body {
		switch name {
		case "Boot":
		case "AssetTag":
			text, ok := value.(string)
			if !ok || len(text) > maxAssetTag {
				return badValue(name, value), nil
			}
			tag = text
		case "IndicatorLED", "LocationIndicatorActive":
			indicator[name] = value
		default:
			return unknownProperty(name), nil
		}
	}
	if boot, given := body["Boot"]; given {
		properties, ok := boot.(map[string]any)
		if !ok {
			return badValue("Boot", boot), nil
		}
		if refused, err := s.patchBoot(r, properties); refused != nil || err != nil {
			return refused, err
		}
	}
	if refused := s.patchIndicator(indicator); refused != nil {
		return refused, nil
	}
	return s.patchAssetTag(tag), nil
}

// maxAssetTag is HPE's limit: 32 characters.
const maxAssetTag = 32

func (s *Server) patchAssetTag(tag string) *message {
	s.mu.Lock()
	fault := s.faults.assetTag
	s.mu.Unlock()
	switch {
	case tag == s.machine.AssetTag():
	case fault == AssetTagRefused:
		return notWritable("AssetTag")
	case fault != AssetTagForgotten:
		s.machine.SetAssetTag(tag)
	}
	return nil
}

func (s *Server) patchBoot(r *http.Request, properties map[string]any) (*message, error) {
	override := s.machine.Override()
	if override.Target == "" {
		override.Target = None
	}
	s.mu.Lock()
	uri := s.httpBootURI
	s.mu.Unlock()

	enabled := ""
	for name, value := range properties {
		text, ok := value.(string)
		if !ok {
			return badValue(name, value), nil
		}
		switch name {
		case "BootSourceOverrideTarget":
			if !slices.Contains(s.bootTargets(), Target(text)) {
				return badValue(name, text), nil
			}
			override.Target = Target(text)
		case "BootSourceOverrideEnabled":
			if !slices.Contains([]string{"Disabled", "Once", "Continuous"}, text) {
				return badValue(name, text), nil
			}
			enabled = text
		case "BootSourceOverrideMode":
			if Firmware(text) != s.config.Inventory.Firmware {
				return badValue(name, text), nil
			}
		case "HttpBootUri":
			if s.config.Inventory.Firmware != UEFI {
				return unknownProperty(name), nil
			}
			if parsed, err := url.Parse(text); text != "" && (err != nil || parsed.Host == "" || len(text) > 2048) {
				return badValue(name, text), nil
			}
			uri = text
		default:
			return unknownProperty(name), nil
		}
	}
	switch {
	case enabled == "Disabled":
		override = Override{Target: None}
	case enabled != "":
		override.Once = enabled == "Once"
	case override.Target != s.machine.Override().Target:
		// A target alone means once, as on iLO.
		override.Once = true
	}
	if override.Target == None {
		override.Once = false
	}
	override.URI = ""
	if override.Target == UefiHTTP {
		override.URI = uri
	}
	if err := s.machine.SetOverride(r.Context(), override); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.httpBootURI = uri
	s.mu.Unlock()
	return nil, nil
}

func (s *Server) patchIndicator(body map[string]any) *message {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, value := range body {
		switch name {
		case "IndicatorLED":
			text, ok := value.(string)
			if !ok || !slices.Contains([]string{"Off", "Lit", "Blinking"}, text) {
				return badValue(name, value)
			}
			s.indicator = text
		case "LocationIndicatorActive":
			active, ok := value.(bool)
			if !ok {
				return badValue(name, value)
			}
			s.indicator = "Off"
			if active {
				s.indicator = "Blinking"
			}
		default:
			return unknownProperty(name)
		}
	}
	return nil
}

// resetManager restarts the BMC as far as a client can see: its sessions end.
func (s *Server) resetManager(w http.ResponseWriter, _ *http.Request) {
	s.sessions.clear()
	w.WriteHeader(http.StatusNoContent)
}

func resetTypes() []string {
	return []string{"On", "ForceOff", "GracefulShutdown", "GracefulRestart", "ForceRestart", "PowerCycle", "Nmi", "PushPowerButton"}
}

// reset implements ComputerSystem.Reset.
func (s *Server) reset(w http.ResponseWriter, r *http.Request) {
	var body struct{ ResetType string }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&body); err != nil {
		fail(w, http.StatusBadRequest, malformedJSON())
		return
	}
	kind := body.ResetType
	if !slices.Contains(resetTypes(), kind) {
		fail(w, http.StatusBadRequest, message{ID: "Base.1.16.ActionParameterNotSupported", Severity: "Warning",
			Args:       []string{kind, "ComputerSystem.Reset"},
			Text:       "The parameter ResetType '" + kind + "' for the action ComputerSystem.Reset is not supported on the target resource.",
			Resolution: "Choose one of ResetType@Redfish.AllowableValues."})
		return
	}
	power := s.machine.Power()
	if kind == "On" && power == On {
		fail(w, http.StatusConflict, wrongState("The server is already powered on."))
		return
	}
	if kind != "On" && kind != "PushPowerButton" && power == Off {
		fail(w, http.StatusConflict, wrongState("The server is powered off; "+kind+" needs it powered on."))
		return
	}
	s.mu.Lock()
	delay := s.faults.powerDelay
	s.restart = kind == "GracefulRestart"
	s.mu.Unlock()

	if delay > 0 {
		s.later(delay, kind, s.action(kind, power))
		w.WriteHeader(http.StatusNoContent)
		return
	}
	// The request stays valid when the client hangs up.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), time.Minute)
	defer cancel()
	err := s.action(kind, power)(ctx)
	if errors.Is(err, ErrOff) {
		fail(w, http.StatusConflict, wrongState("The server went off before "+kind+" could be done."))
		return
	}
	if err != nil {
		s.log.Warn("action failed", "bmc", s.config.Address.String(), "action", kind, "error", err)
		fail(w, http.StatusInternalServerError, internal(err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
