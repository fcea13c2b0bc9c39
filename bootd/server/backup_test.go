package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/rackweft/rackweft/api"
)

// TestBackupIsLocal has nobody but root on bootd's own machine be given its keys:
// no administrator from elsewhere is.
func TestBackupIsLocal(t *testing.T) {
	fail := false
	r := newRig(t, func(c *Config) {
		c.Backup = func(_ context.Context, w io.Writer, blobs bool) error {
			_, err := io.WriteString(w, map[bool]string{true: "all and blobs", false: "all"}[blobs])
			if fail {
				err = errors.New("the disk has gone")
			}
			return err
		}
	})
	if _, err := r.person("anna", "admin").Do(t.Context(), "GET", "/v1/backup", nil); !isStatus(err, http.StatusForbidden) {
		t.Errorf("an admin from elsewhere: %v", err)
	}
	if _, err := r.bearer(operatorToken).Do(t.Context(), "GET", "/v1/backup", nil); !isStatus(err, http.StatusForbidden) {
		t.Errorf("an operator: %v", err)
	}
	read := func() (body, fault string) {
		t.Helper()
		resp, err := r.root().Do(t.Context(), "GET", "/v1/backup?blobs=true", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw), resp.Trailer.Get(backupTrailer)
	}
	if body, fault := read(); body != "all and blobs" || fault != "" {
		t.Errorf("root gets %q, %q", body, fault)
	}
	fail = true
	if _, fault := read(); fault == "" {
		t.Error("a backup that broke off does not say so")
	}
}

func isStatus(err error, status int) bool {
	var p *api.Problem
	return errors.As(err, &p) && p.Status == status
}
