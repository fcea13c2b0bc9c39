// Package beacon writes down where a host shows that it is alive, for the daemon
// that does so.
package beacon

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
	"github.com/rackweft/rackweft/nodeagent"
)

// Handler is the nodeagent.Handler of beacon parts: a file for each in Dir.
type Handler struct{ Dir string }

// Kind implements nodeagent.Handler.
func (Handler) Kind() string { return "beacon" }

// Reconcile implements nodeagent.Handler.
func (h Handler) Reconcile(_ context.Context, parts []nodeagent.Part) map[string]api.PartStatus {
	out := map[string]api.PartStatus{}
	for _, p := range parts {
		out[p.Key()] = h.status(p)
	}
	return out
}

func (h Handler) status(p nodeagent.Part) api.PartStatus {
	if err := api.ValidateName(p.UID); err != nil { // it becomes a file's name
		return api.PartStatus{State: api.PartFailed, Message: err.Error()}
	}
	if err := h.apply(p); err != nil {
		return api.PartStatus{State: api.PartPending, Message: err.Error()}
	}
	return api.PartStatus{State: api.PartApplied}
}

func (h Handler) apply(p nodeagent.Part) error {
	path := filepath.Join(h.Dir, p.UID+".json")
	switch p.Want {
	case nodeagent.Orphaned:
		return nil
	case nodeagent.Removed:
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	raw, err := json.Marshal(p.Value)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return err
	}
	return file.Replace(path, raw, file.Options{})
}
