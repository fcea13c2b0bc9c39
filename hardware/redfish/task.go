package redfish

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// await polls the task behind a 202 (DSP0266 12.2) and answers with its outcome. A BMC that names no task
// has accepted, and that is all there is to know.
func (t *transport) await(req *http.Request, accepted reply) (reply, error) {
	path := pathOf(accepted.header.Get("Location"))
	if path == "" {
		var task link
		if decode(accepted.body, &task) == nil {
			path = pathOf(string(task.ID))
		}
	}
	if path == "" {
		return accepted, nil
	}
	limit := taskLimit
	if strings.HasSuffix(req.URL.Path, ".Reset") {
		limit = watchLimit // whether it happened shows in the system as well
	}
	var waited time.Duration
	wait := retryAfter(accepted.header, 2*time.Second)
	for missing, seen := 0, false; ; {
		if waited += wait; waited > limit {
			return reply{}, fmt.Errorf("%s %s: task %s after %s: %w: %w", req.Method, req.URL.Path, path, limit, hardware.ErrUnfinished, hardware.ErrNotSeen)
		}
		if err := t.pause(t.ctx, wait); err != nil {
			return reply{}, fmt.Errorf("%s %s: wait for task %s: %w: %w: %w", req.Method, req.URL.Path, path, hardware.ErrUnfinished, hardware.ErrNotSeen, err)
		}
		answer, err := t.poll(req, path)
		if err != nil {
			return reply{}, err
		}
		if answer.status == http.StatusNotFound {
			if seen || missing == 3 {
				return accepted, nil // it was removed with its outcome
			}
			missing++ // Dell names the job before it exists
			wait = 10 * time.Second
			continue
		}
		outcome, over := taskOutcome(answer)
		if over {
			return outcome, nil
		}
		seen, wait = true, retryAfter(answer.header, 2*time.Second)
	}
}

func (t *transport) poll(req *http.Request, path string) (reply, error) {
	get, err := http.NewRequestWithContext(t.ctx, http.MethodGet, req.URL.Scheme+"://"+req.URL.Host+path, nil)
	if err != nil {
		return reply{}, fmt.Errorf("task %q: %w", path, err)
	}
	get.Header.Set("Accept", "application/json")
	t.authorize(get.Header)
	return t.persist(get, nil)
}

// taskOutcome turns a task's state into the answer of the request that began it. A task that waits for the
// next reset has been accepted.
func taskOutcome(answer reply) (reply, bool) {
	if answer.status >= http.StatusBadRequest {
		return answer, true
	}
	var task struct {
		Type   text `json:"@odata.type"`
		State  text `json:"TaskState"`
		Status text `json:"TaskStatus"`
	}
	if decode(answer.body, &task) != nil || task.State == "" {
		return answer, answer.status != http.StatusAccepted
	}
	switch task.State {
	case "New", "Starting", "Running", "Stopping", "Service", "Cancelling":
		return reply{}, false
	case "Exception", "Killed", "Cancelled", "Interrupted":
		return reply{status: http.StatusInternalServerError, header: answer.header, body: answer.body}, true
	}
	return reply{status: http.StatusOK, header: answer.header, body: answer.body}, true
}
