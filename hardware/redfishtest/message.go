package redfishtest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// extended is one ExtendedInfo entry.
func extended(id, text string, args ...string) Resource {
	list := make([]any, len(args))
	for i, arg := range args {
		list[i] = arg
	}
	return Resource{"@odata.type": "#Message.v1_0_8.Message", "MessageId": id, "Message": text, "MessageArgs": list,
		"Severity": "Warning", "Resolution": "None."}
}

// reply is the answer to one request. It keeps the status.
type reply struct {
	http.ResponseWriter
	rules
	date   string // of the Date header; none where it is empty
	status int
	said   string // message id of a refusal
}

// WriteHeader is http.ResponseWriter's.
func (w *reply) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write is http.ResponseWriter's.
func (w *reply) Write(data []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(data)
}

// Unwrap has http.ResponseController find what is below.
func (w *reply) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// refuse writes a Redfish error, in the shape that this BMC gives it.
func (w *reply) refuse(status int, id, text string, args ...string) {
	w.said = id
	info := extended(id, text, args...)
	fault := Resource{"code": "Base.1.8.GeneralError", "message": "A general error has occurred. See ExtendedInfo for more information."}
	switch {
	case w.has(ErrorsAreHTML):
		w.stamp()
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, "<html><head><title>%d %s</title></head></html>", status, http.StatusText(status)) // the client may have gone
		return
	case w.has(InfoAtTop):
		w.send(status, Resource{"@Message.ExtendedInfo": []any{info}, "error": fault})
		return
	case w.has(InfoObject):
		fault["@Message.ExtendedInfo"] = info
	default:
		fault["@Message.ExtendedInfo"] = []any{info}
	}
	w.send(status, Resource{"error": fault})
}

func (w *reply) say(no *refusal) { w.refuse(no.status, no.id, no.text, no.args...) }

func (w *reply) malformed() {
	w.refuse(http.StatusBadRequest, "Base.1.8.MalformedJSON", "The request body submitted was malformed JSON.")
}

func (w *reply) missing(at string) {
	w.refuse(http.StatusNotFound, "Base.1.8.ResourceMissingAtURI", "The resource at the URI "+at+" was not found.", at)
}

// send answers with a resource; nil answers nothing.
func (w *reply) send(status int, resource Resource) {
	w.stamp()
	if resource == nil {
		w.WriteHeader(status)
		return
	}
	data, err := json.Marshal(resource)
	if err != nil {
		panic(err) // a tree was read from JSON
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("OData-Version", "4.0")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, string(data)+"\n") // a client that has gone reads nothing
}

// stamp writes the BMC's own time, or none.
func (w *reply) stamp() {
	if w.date == "" {
		w.Header()["Date"] = nil
		return
	}
	w.Header().Set("Date", w.date)
}

// refusal is why a write is not done.
type refusal struct {
	status   int
	id, text string
	args     []string
}

func badRequest(id, text string, args ...string) *refusal {
	return &refusal{http.StatusBadRequest, "Base.1.8." + id, text, args}
}

func notKnown(property string) *refusal {
	return badRequest("PropertyUnknown", "The property "+property+" is not in the list of valid properties for the resource.", property)
}

func notWritable(property string) *refusal {
	return badRequest("PropertyNotWritable", "The property "+property+" is a read only property and cannot be assigned a value.", property)
}

func notListed(value, property string) *refusal {
	return badRequest("PropertyValueNotInList", "The value "+value+" for the property "+property+" is not in the list of acceptable values.", value, property)
}

func noLicence() *refusal {
	return &refusal{http.StatusForbidden, "SMC.1.0.OemLicenseNotPassed", "Not licensed to perform this request.", nil}
}
