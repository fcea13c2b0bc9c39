package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/store"
)

func problem(status int, format string, args ...any) *api.Problem {
	return &api.Problem{Status: status, Title: http.StatusText(status), Detail: fmt.Sprintf(format, args...)}
}

// invalid is a refused object, with the fields at fault.
func invalid(o api.Object, e api.FieldErrors) *api.Problem {
	p := problem(http.StatusUnprocessableEntity, "%s %q is not valid", api.KindOf(o).Name, o.Meta().Name)
	p.Errors = e
	return p
}

// problemOf turns any error into a problem document for the client.
func problemOf(err error) *api.Problem {
	var (
		p        *api.Problem
		field    api.FieldError
		conflict *store.ConflictError
		mismatch *blob.MismatchError
		tooLong  *http.MaxBytesError
	)
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &field):
		p = problem(http.StatusBadRequest, "the body cannot be read")
		p.Errors = api.FieldErrors{field}
		return p
	case errors.As(err, &conflict):
		p = problem(http.StatusConflict, "%s", conflict)
		p.ResourceVersion = conflict.Current
		return p
	case errors.As(err, &mismatch):
		return problem(http.StatusUnprocessableEntity, "%s", mismatch)
	case errors.As(err, &tooLong):
		return problem(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", tooLong.Limit)
	}
	return problem(codeOf(err), "%s", err)
}

func codeOf(err error) int {
	for _, known := range []struct {
		err    error
		status int
	}{
		{store.ErrNotFound, http.StatusNotFound},
		{fs.ErrNotExist, http.StatusNotFound},
		{store.ErrExists, http.StatusConflict},
		{store.ErrConflict, http.StatusConflict},
		{store.ErrCompacted, http.StatusGone},
		{store.ErrNoSpace, http.StatusInsufficientStorage},
		{store.ErrNotHolder, http.StatusServiceUnavailable},
		{store.ErrReadOnly, http.StatusInsufficientStorage},
		{blob.ErrNoSpace, http.StatusInsufficientStorage},
		{store.ErrTooLarge, http.StatusRequestEntityTooLarge},
		{context.DeadlineExceeded, http.StatusServiceUnavailable},
		{context.Canceled, http.StatusServiceUnavailable},
	} {
		if errors.Is(err, known.err) {
			return known.status
		}
	}
	return http.StatusInternalServerError
}

// writeProblem answers with an RFC 9457 problem document.
func writeProblem(w http.ResponseWriter, p *api.Problem) {
	raw, err := api.Encode(p)
	if err != nil {
		http.Error(w, p.Title, p.Status)
		return
	}
	h := w.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", "application/problem+json")
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(raw, '\n'))
}
