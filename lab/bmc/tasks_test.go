package bmc_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/rackweft/rackweft/lab/bmc"
)

func TestResetAnswers(t *testing.T) {
	tests := []struct {
		name    string
		answer  bmc.ResetAnswer
		status  int
		done    bool
		state   string // of the task, at last
		monitor int    // its monitor's answer then
	}{
		{"ignored", bmc.ResetIgnored, 204, false, "", 0},
		{"task", bmc.ResetTask, 202, true, "Completed", 204},
		{"task fails", bmc.ResetTaskFails, 202, false, "Exception", 500},
		{"task hangs", bmc.ResetTaskHangs, 202, true, "Running", 202},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server, machine, address := serve(t, nil)
			c := newClient(t, address)
			server.SetResetAnswer(tt.answer)
			c.want(400, "POST", reset, `{"ResetType":"Explode"}`)
			response, body := c.do("POST", reset, `{"ResetType":"On"}`)
			if response.StatusCode != tt.status {
				t.Fatalf("%s, want %d: %v", response.Status, tt.status, body)
			}
			if tt.done {
				eventually(t, "the server is on", func() bool { return machine.Power() == bmc.On })
			}
			if tt.status == 202 {
				location := response.Header.Get("Location")
				at, _ := body["@odata.id"].(string)
				if location == "" || body["TaskMonitor"] != location {
					t.Fatalf("Location %q, task %v", location, body)
				}
				eventually(t, "the task is "+tt.state, func() bool { return c.want(200, "GET", at, "")["TaskState"] == tt.state })
				c.want(tt.monitor, "GET", location, "")
				c.crawl()
			}
			if !tt.done && machine.Power() != bmc.Off {
				t.Error("the server is on")
			}
			server.SetResetAnswer(bmc.ResetDone)
			c.want(404, "GET", "/redfish/v1/TaskService/TaskMonitors/99", "")
		})
	}
}

func TestTaskRuns(t *testing.T) {
	server, machine, address := serve(t, nil)
	c := newClient(t, address)
	server.SetResetAnswer(bmc.ResetTask)
	server.DelayPower(time.Hour)
	response, body := c.do("POST", reset, `{"ResetType":"On"}`)
	if response.StatusCode != http.StatusAccepted || body["TaskState"] != "Running" || body["EndTime"] != nil {
		t.Fatalf("%s: %v", response.Status, body)
	}
	c.want(202, "GET", response.Header.Get("Location"), "")
	if machine.Power() != bmc.Off {
		t.Error("on before its time")
	}
	for range 40 { // old tasks are forgotten
		c.want(202, "POST", reset, `{"ResetType":"On"}`)
	}
	if all := c.want(200, "GET", "/redfish/v1/TaskService/Tasks", ""); all["Members@odata.count"] != 32.0 {
		t.Errorf("%v tasks, want 32", all["Members@odata.count"])
	}
}
