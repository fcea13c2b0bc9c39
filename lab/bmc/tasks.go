package bmc

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	tasksPath    = root + "/TaskService/Tasks"
	monitorsPath = root + "/TaskService/TaskMonitors"
	maxTasks     = 32 // that are remembered
)

// task is an operation that was answered before it was done (DSP0266 §14.2).
type task struct {
	id             int
	name           string
	started, ended time.Time // ended is zero while it runs
	err            error
}

// tasks are the last tasks of the BMC.
type tasks struct {
	clock func() time.Time

	mu     sync.Mutex // guards the fields below, and every task
	serial int
	all    []*task
}

func (t *tasks) start(name string) *task {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.serial++
	one := &task{id: t.serial, name: name, started: t.clock()}
	t.all = append(t.all, one)
	if len(t.all) > maxTasks {
		t.all = t.all[len(t.all)-maxTasks:]
	}
	return one
}

func (t *tasks) end(one *task, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one.ended, one.err = t.clock(), err
}

// resource renders a task (Task schema). The caller holds mu.
func (one *task) resource() resource {
	state, status, messages := "Running", "OK", []message{}
	body := resource{}
	if !one.ended.IsZero() {
		state = "Completed"
		body["EndTime"] = one.ended.UTC().Format(time.RFC3339)
	}
	if one.err != nil {
		state, status, messages = "Exception", "Critical", append(messages, internal(one.err))
	}
	at := tasksPath + "/" + strconv.Itoa(one.id)
	for name, value := range (resource{
		"@odata.id": at, "@odata.type": "#Task.v1_7_3.Task", "Id": strconv.Itoa(one.id), "Name": one.name,
		"TaskState": state, "TaskStatus": status, "StartTime": one.started.UTC().Format(time.RFC3339),
		"TaskMonitor": one.monitor(), "Messages": messages,
	}) {
		body[name] = value
	}
	return body
}

func (one *task) monitor() string { return monitorsPath + "/" + strconv.Itoa(one.id) }

func (t *tasks) addTo(tree tree) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, one := range t.all {
		body := one.resource()
		tree[tasksPath+"/"+strconv.Itoa(one.id)] = body
	}
	tree.collect(tasksPath, "Task", "Task Collection")
	tree.add(root+"/TaskService", "#TaskService.v1_2_1.TaskService", "Task Service", resource{
		"Status": enabled(), "ServiceEnabled": true, "CompletedTaskOverWritePolicy": "Oldest", "LifeCycleEventOnTaskStateChange": false,
		"DateTime": t.clock().UTC().Format(time.RFC3339), "Tasks": link(tasksPath),
	})
}

// monitor answers 202 while the task runs, and then what the operation itself
// would have been answered.
func (t *tasks) monitor(w http.ResponseWriter, r *http.Request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, one := range t.all {
		if one.monitor() != r.URL.Path {
			continue
		}
		switch {
		case one.ended.IsZero():
			w.Header().Set("Location", one.monitor())
			reply(w, http.StatusAccepted, one.resource())
		case one.err != nil:
			fail(w, http.StatusInternalServerError, internal(one.err))
		default:
			w.WriteHeader(http.StatusNoContent)
		}
		return
	}
	fail(w, http.StatusNotFound, missing(r.URL.Path))
}

// accept answers 202 for an operation, which do carries out after a delay. The
// task of one that never ends stays Running.
func (s *Server) accept(w http.ResponseWriter, what string, delay time.Duration, do func(context.Context) (ended bool, err error)) {
	one := s.tasks.start(what)
	s.later(delay, what, func(ctx context.Context) error {
		ended, err := do(ctx)
		if ended {
			s.tasks.end(one, err)
		}
		return err
	})
	s.tasks.mu.Lock()
	body := one.resource()
	s.tasks.mu.Unlock()
	w.Header().Set("Location", one.monitor())
	reply(w, http.StatusAccepted, body)
}
