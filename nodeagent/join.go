package nodeagent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

// maxFrame bounds one answer or frame of bootd, in bytes.
const maxFrame = 16 << 20

// joiner makes this machine a host: it gets an identity from bootd and stores it.
type joiner struct {
	config api.AgentConfig
	dir    string // of identity and key
	bootID string
	timing timing
	log    *slog.Logger
	report func(context.Context, Link)
}

// needsJoin reports whether the host lacks an identity for this BootAttempt.
func (j joiner) needsJoin(id *identity, token string) bool {
	if id == nil || id.Machine != j.config.Machine || id.UID != j.config.UID {
		return true
	}
	// A machine that was reprovisioned with its data kept still has the certificate
	// of an earlier BootAttempt: the new token counts.
	return id.AttemptID != j.config.AttemptID && token != ""
}

// join returns the host's identity once it has one; only ctx ends its attempts.
func (j joiner) join(ctx context.Context) (*identity, error) {
	j.report(ctx, Link{State: LinkJoining})
	pause := backoff{min: j.timing.minBackoff, max: j.timing.maxBackoff}
	for {
		id, err := j.tryJoin(ctx)
		if err == nil {
			return id, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var refused *refusal
		if errors.As(err, &refused) {
			j.log.Error("join refused", "error", err)
			j.report(ctx, Link{State: LinkRefused, Error: err.Error()})
			_ = wait.For(ctx, j.timing.refused)
			continue
		}
		j.log.Warn("cannot join yet", "error", err)
		j.report(ctx, Link{State: LinkJoining, Error: oneLine(err)})
		pause.wait(ctx)
	}
}

// refusal is an answer that a repeated request would get again.
type refusal struct{ message string }

func (r *refusal) Error() string { return r.message }

func refuse(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

func (j joiner) tryJoin(ctx context.Context) (*identity, error) {
	id, err := loadIdentity(identityPath(j.dir))
	if err != nil {
		j.log.Warn("cannot use the host's identity; joining again", "error", err)
	}
	token, err := readToken(j.config.JoinTokenFile)
	if err != nil {
		return nil, err
	}
	if !j.needsJoin(id, token) {
		j.dropToken()
		return id, nil
	}
	if token == "" {
		return nil, refuse("this machine has no certificate for uid %s and no join token in %q: reprovision it with `weftctl machine reprovision %s`",
			j.config.UID, j.config.JoinTokenFile, j.config.Machine)
	}
	key, err := joinKey(joinKeyPath(j.dir), j.config.AttemptID)
	if err != nil {
		return nil, err
	}
	id, err = j.requestJoin(ctx, key, token)
	if err != nil {
		return nil, err
	}
	if err := id.save(identityPath(j.dir)); err != nil {
		return nil, err // a repeated request with the same key is the same join to bootd
	}
	j.log.Info("joined", "machine", id.Machine, "uid", id.UID, "attempt", id.AttemptID)
	j.dropToken()
	return id, nil
}

// readToken returns "" when there is none.
func readToken(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the join token: %w", err)
	}
	token := strings.TrimSpace(string(raw))
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", refuse("invalid join token in %s: want one word", path)
	}
	return token, nil
}

// dropToken removes the token and the key of the join, which are no longer needed.
// A token that cannot be removed is used up and does no harm.
func (j joiner) dropToken() {
	for _, path := range []string{j.config.JoinTokenFile, joinKeyPath(j.dir)} {
		if path == "" {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			j.log.Warn("cannot remove a used join token or key", "path", path, "error", err)
		}
	}
}

// requestJoin tries one bootd after the other.
func (j joiner) requestJoin(ctx context.Context, key, token string) (*identity, error) {
	csr, err := signingRequest(key, j.config.Machine)
	if err != nil {
		return nil, err
	}
	body, err := api.Encode(api.JoinRequest{Machine: j.config.Machine, CSR: csr, Time: time.Now().UTC(), BootID: j.bootID})
	if err != nil {
		return nil, err
	}
	var faults []error
	for _, base := range j.config.API {
		answer, err := j.postJoin(ctx, base, token, body)
		if err == nil {
			return j.accept(answer, key)
		}
		var refused *refusal
		if errors.As(err, &refused) || ctx.Err() != nil {
			return nil, err
		}
		faults = append(faults, err)
	}
	return nil, errors.Join(faults...)
}

func (j joiner) postJoin(ctx context.Context, base, token string, body []byte) (*api.JoinResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, j.timing.silence)
	defer cancel()
	roots, err := parseCertificates(j.config.CA)
	if err != nil {
		return nil, fmt.Errorf("the site's CA: %w", err)
	}
	client, err := newClient(base, roots, nil, j.timing.dial)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(base, "/")+"/v1/join", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxFrame))
	if err != nil {
		return nil, fmt.Errorf("join: read the answer of %s: %w", base, err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		return nil, joinFault(base, j.config.Machine, resp.StatusCode, raw)
	}
	answer := new(api.JoinResponse)
	if err := json.Unmarshal(raw, answer); err != nil {
		return nil, fmt.Errorf("join: the answer of %s cannot be read: %w", base, err)
	}
	return answer, nil
}

// joinFault converts an answer other than 200 to an error.
func joinFault(base, machine string, status int, body []byte) error {
	p := problem(status, body)
	if !final(status) {
		return fmt.Errorf("join: %s answers %d: %w", base, status, p)
	}
	return refuse("%s refuses the join (%d: %s). The token belongs to one BootAttempt, works once and in its window: see `weftctl explain machine %s`, then reprovision it with `weftctl machine reprovision %s`",
		base, status, p, machine, machine)
}

// final reports whether a retry soon is useless.
func final(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return status/100 == 4
}

func problem(status int, body []byte) *api.Problem {
	p := new(api.Problem)
	if json.Unmarshal(body, p) != nil || p.Title == "" {
		p = &api.Problem{Title: http.StatusText(status), Detail: fmt.Sprintf("%.200s", strings.TrimSpace(string(body)))}
	}
	p.Status = status
	return p
}

// accept checks that bootd's answer is for this machine and this key.
func (j joiner) accept(r *api.JoinResponse, key string) (*identity, error) {
	if r.Machine != j.config.Machine || r.UID != j.config.UID {
		return nil, refuse("bootd joined this machine as %s (uid %s), its configuration says %s (uid %s): reprovision it with `weftctl machine reprovision %s`",
			r.Machine, r.UID, j.config.Machine, j.config.UID, j.config.Machine)
	}
	attempt := r.AttemptID
	if attempt == "" {
		attempt = j.config.AttemptID
	}
	if attempt != j.config.AttemptID {
		return nil, refuse("bootd joined this machine in BootAttempt %s, its configuration is of %s: reprovision it with `weftctl machine reprovision %s`",
			attempt, j.config.AttemptID, j.config.Machine)
	}
	id := &identity{Machine: r.Machine, UID: r.UID, AttemptID: attempt, Key: key, Certificate: r.Certificate, CA: r.CA, API: r.API, Issued: r.Time.UTC()}
	if _, err := id.pair(); err != nil {
		return nil, fmt.Errorf("join: bootd's certificate does not fit this host's key: %w", err)
	}
	if r.CA != "" {
		if _, err := parseCertificates(r.CA); err != nil {
			return nil, fmt.Errorf("join: the CA that bootd sent: %w", err)
		}
	}
	return id, nil
}
