package server

import "net/http"

// whileHeld refuses to answer from state that is from before bootd lost the Site: it may have been stopped in the
// meantime while another one serves.
func (s *Server) whileHeld(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.conf.Store.Holding(); err != nil {
			writeProblem(w, problem(http.StatusServiceUnavailable, "%s", err))
			return
		}
		next.ServeHTTP(w, r)
	})
}
