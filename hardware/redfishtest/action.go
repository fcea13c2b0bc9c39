package redfishtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"
)

// post answers a POST: actions, and members of collections that take them.
func (b *BMC) post(w *reply, q *request) {
	owner, action, isAction := strings.Cut(q.path, "/Actions/")
	switch {
	case isAction && b.tree[owner] == nil:
		w.missing(q.path)
	case action == "ComputerSystem.Reset" && b.hosts[owner] != nil && b.tree[owner]["Actions"] != nil:
		b.resetSystem(w, q, b.hosts[owner])
	case action == "Manager.Reset":
		clear(b.door.sessions)
		w.send(http.StatusNoContent, nil)
	case b.media[owner] != nil && b.tree[owner]["Actions"] != nil && path.Ext(action) == ".InsertMedia":
		b.media[owner].insert(w, q)
	case b.media[owner] != nil && b.tree[owner]["Actions"] != nil && path.Ext(action) == ".EjectMedia":
		b.media[owner].eject(w, q, b.Clock.Now())
	case b.tree[q.path] != nil && path.Base(q.path) == "Subscriptions":
		b.subscribe(w, q)
	case str(b.tree[q.path], "@odata.type") == "#CertificateCollection.CertificateCollection":
		b.enroll(w, q)
	case isAction:
		w.refuse(http.StatusBadRequest, "Base.1.8.ActionNotSupported", "The action "+action+" is not supported by the resource.", action)
	case b.tree[q.path] == nil:
		w.missing(q.path)
	default:
		w.refuse(http.StatusMethodNotAllowed, "Base.1.8.OperationNotAllowed", "The HTTP method is not allowed on this resource.")
	}
}

// resetSystem answers ComputerSystem.Reset.
func (b *BMC) resetSystem(w *reply, q *request, h *host) {
	var sent struct{ ResetType string }
	if json.Unmarshal(q.body, &sent) != nil {
		w.malformed()
		return
	}
	if allowed := h.resetTypes(); !slices.Contains(allowed, sent.ResetType) {
		w.refuse(http.StatusBadRequest, "Base.1.8.ActionParameterNotSupported", "The parameter ResetType for the action ComputerSystem.Reset is not supported: "+sent.ResetType,
			"ResetType", "ComputerSystem.Reset")
		return
	}
	if no := h.refuses(sent.ResetType); no != nil {
		w.say(no)
		return
	}
	if !b.has(ResetDoesNothing) && !b.has(TaskFails) {
		h.act(sent.ResetType)
	}
	switch {
	case b.has(ResetAnswerLost):
		panic(http.ErrAbortHandler)
	case b.has(ResetTask), b.has(TaskFails), b.has(TaskNeverEnds), b.has(TaskLate), b.has(TaskInBody), b.has(TaskVanishes):
		b.tasks.begin(w, b.Clock.Now())
	default:
		w.send(http.StatusNoContent, nil)
	}
}

// resetTypes are those that the system lists, itself or in its ActionInfo; all of the schema's where it lists none.
func (h *host) resetTypes() []string {
	action := object(h.b.tree[h.path], "Actions", "#ComputerSystem.Reset")
	list, _ := action["ResetType@Redfish.AllowableValues"].([]any)
	parameters, _ := h.b.tree[canonical(str(action, "@Redfish.ActionInfo"))]["Parameters"].([]any)
	for _, p := range parameters {
		if parameter, ok := p.(map[string]any); ok && parameter["Name"] == "ResetType" && list == nil {
			list, _ = parameter["AllowableValues"].([]any)
		}
	}
	if list == nil {
		return []string{"On", "ForceOff", "GracefulShutdown", "GracefulRestart", "ForceRestart", "Nmi", "ForceOn", "PushPowerButton", "PowerCycle"}
	}
	var types []string
	for _, value := range list {
		if text, ok := value.(string); ok {
			types = append(types, text)
		}
	}
	return types
}

// refuses says what the server's state has against a reset.
func (h *host) refuses(kind string) *refusal {
	there := h.on && (kind == "On" || kind == "ForceOn") || !h.on && (kind == "ForceOff" || kind == "GracefulShutdown")
	impossible := !h.on && (kind == "ForceRestart" || kind == "GracefulRestart" || kind == "PowerCycle" || kind == "Nmi")
	invalid := &refusal{http.StatusBadRequest, "iLO.2.14.InvalidOperationForSystemState", "The operation was not successful due to the current power state.", nil}
	switch {
	case h.b.has(TooSoon) && !h.changed.IsZero() && h.b.Clock.Now().Sub(h.changed) < 20*time.Second:
		return invalid
	case h.b.has(ConflictAtFirst) && kind == "On" && h.notYet():
		return &refusal{http.StatusConflict, "Base.1.12.ActionParameterValueConflict", "The parameter ResetType with the requested value On does not meet the constraints of the implementation.",
			[]string{"ResetType", kind}}
	case (there || impossible) && h.b.has(AlreadyBadRequest):
		return invalid
	case there && h.b.has(AlreadyConflict), impossible:
		return &refusal{http.StatusConflict, "Base.1.8.ActionNotSupportedInState", "The action " + kind + " is not possible in the current power state.", []string{kind}}
	}
	return nil
}

// notYet is true for the first two.
func (h *host) notYet() bool {
	h.tries++
	return h.tries <= 2
}

// act does what a reset type says.
func (h *host) act(kind string) {
	switch kind {
	case "On", "ForceOn":
		if !h.on {
			h.boot()
		}
	case "ForceRestart", "GracefulRestart", "PowerCycle":
		h.boot()
	case "ForceOff", "GracefulShutdown":
		if h.on {
			h.powerOff()
		}
	case "PushPowerButton":
		if h.on {
			h.powerOff()
			return
		}
		h.boot()
	}
}

// tasks are what a 202 points to: when each was begun, by its path.
type tasks struct {
	rules
	begun map[string]time.Time
}

func (t tasks) has(at string) bool { return !t.begun[at].IsZero() }

func (t tasks) begin(w *reply, now time.Time) {
	at := fmt.Sprintf("%s/TaskService/Tasks/%d", rootPath, len(t.begun)+1)
	t.begun[at] = now
	if !t.rules.has(TaskInBody) {
		w.Header().Set("Location", at)
	}
	w.send(http.StatusAccepted, Resource{"@odata.id": at, "@odata.type": "#Task.v1_4_3.Task", "Id": path.Base(at), "Name": "Reset", "TaskState": "New"})
}

// resource is a task as it is now; nil while it is not there.
func (t tasks) resource(at string, now time.Time) Resource {
	age := now.Sub(t.begun[at])
	state := "Running"
	switch {
	case t.rules.has(TaskLate) && age < 20*time.Second:
		return nil
	case t.rules.has(TaskNeverEnds), age < 5*time.Second:
	case t.rules.has(TaskVanishes):
		return nil
	case t.rules.has(TaskFails):
		state = "Exception"
	default:
		state = "Completed"
	}
	resource := Resource{"@odata.id": at, "@odata.type": "#Task.v1_4_3.Task", "Id": path.Base(at), "Name": "Reset",
		"TaskState": state, "TaskStatus": "OK", "Messages": []any{}}
	if state == "Exception" {
		resource["TaskStatus"] = "Critical"
		resource["Messages"] = []any{extended("IDRAC.2.8.PR21", "Failed.")}
	}
	return resource
}

// enroll answers a POST to a CertificateCollection.
func (b *BMC) enroll(w *reply, q *request) {
	var sent Resource
	if json.Unmarshal(q.body, &sent) != nil || str(sent, "CertificateType") != "PEM" || !strings.Contains(str(sent, "CertificateString"), "BEGIN CERTIFICATE") {
		w.malformed()
		return
	}
	b.add(w, q.path, "#Certificate.v1_7_0.Certificate", sent)
}

// subscribe makes a subscription to events. Nothing is ever delivered to it.
func (b *BMC) subscribe(w *reply, q *request) {
	var sent Resource
	if json.Unmarshal(q.body, &sent) != nil || str(sent, "Destination") == "" {
		w.malformed()
		return
	}
	b.add(w, q.path, "#EventDestination.v1_8_0.EventDestination", sent)
}

// add makes a member of a collection.
func (b *BMC) add(w *reply, collection, kind string, sent Resource) {
	b.made++
	at := fmt.Sprintf("%s/%d", collection, b.made)
	sent["@odata.id"], sent["@odata.type"], sent["Id"] = at, kind, path.Base(at)
	b.tree[at] = sent
	b.setMembers(collection)
	w.Header().Set("Location", at)
	w.send(http.StatusCreated, sent)
}
