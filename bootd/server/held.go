package server

import "net/http"

// whileHeld answers nothing from what bootd knew before it lost the Site: it may
// have been stopped meanwhile, and another one serves.
func (s *Server) whileHeld(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.conf.Store.Holding(); err != nil {
			writeProblem(w, problem(http.StatusServiceUnavailable, "%s", err))
			return
		}
		next.ServeHTTP(w, r)
	})
}
