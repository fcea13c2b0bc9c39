package server

import (
	"net/http"
	"net/http/pprof"
)

// profiled adds the profiles of bootd itself to the API. It is for the socket that only root can open: a profile
// shows bootd's memory, and taking one costs time.
func (s *Server) profiled() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", s.mux)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}
