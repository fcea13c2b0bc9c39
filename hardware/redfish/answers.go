package redfish

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/rackweft/rackweft/hardware"
)

var errClosed = errors.New("session is closed: dial again")

// refusal is an HTTP answer of 400 and above, with the BMC's own words.
type refusal struct {
	method   string
	path     string
	status   int
	messages []message
	alive    bool // the login held: the refusal is meant for this request
}

// message is one Redfish ExtendedInfo entry (DSP0266 8.6).
type message struct {
	ID         text   `json:"MessageId"`
	Text       text   `json:"Message"`
	Resolution text   `json:"Resolution"`
	Args       []text `json:"MessageArgs"`
	Related    []text `json:"RelatedProperties"`
}

func (r *refusal) Error() string {
	words := make([]string, 0, len(r.messages))
	for _, m := range r.messages {
		words = append(words, strings.TrimSpace(string(m.ID+" "+m.Text)))
	}
	said := strings.Join(words, "; ")
	if said == "" {
		said = http.StatusText(r.status)
	}
	return fmt.Sprintf("%s %s: %d %s", r.method, r.path, r.status, said)
}

// Is maps a refusal to the errors that callers branch on. Only a dead login is one of the password: a 403, or a 401 with a
// login that holds, is about this one request.
func (r *refusal) Is(target error) bool {
	switch target {
	case hardware.ErrPasswordChange:
		return r.passwordChange()
	case hardware.ErrUnsupported:
		return r.unsupported()
	case hardware.ErrForbidden:
		return r.forbidden() && !r.unsupported() && !r.passwordChange()
	case hardware.ErrUnauthorized:
		return r.status == http.StatusUnauthorized && !r.forbidden() && !r.unsupported() && !r.passwordChange()
	}
	return false
}

func (r *refusal) forbidden() bool {
	return r.status == http.StatusForbidden || r.status == http.StatusUnauthorized && r.alive
}

// unsupported: not built in, or its licence is missing (Supermicro answers that with 403, which must not
// be taken for a wrong password: metal3 ironic-image#688).
func (r *refusal) unsupported() bool {
	return r.status == http.StatusMethodNotAllowed || r.status == http.StatusNotImplemented ||
		r.says("License") || r.says("ActionNotSupported") || r.says("PropertyNotWritable")
}

// passwordChange: the account has to be given a new password before it may do anything else (DSP0266 §13.3.7).
func (r *refusal) passwordChange() bool { return r.says("PasswordChangeRequired") }

// wantsPasswordChange: the login was good, and for nothing else than a change of the password.
func wantsPasswordChange(opened *reply) bool {
	return opened != nil && (&refusal{messages: parseMessages(opened.body)}).passwordChange()
}

// says whether a message id or text holds the word.
func (r *refusal) says(word string) bool {
	for _, m := range r.messages {
		if strings.Contains(string(m.ID), word) || strings.Contains(string(m.Text), word) {
			return true
		}
	}
	return false
}

// parseMessages reads an error body. Bodies that are no Redfish error (HTML, nothing) give no messages.
func parseMessages(body []byte) []message {
	var reply struct {
		Error struct {
			Code     text            `json:"code"`
			Message  text            `json:"message"`
			Extended json.RawMessage `json:"@Message.ExtendedInfo"`
		} `json:"error"`
		Extended json.RawMessage `json:"@Message.ExtendedInfo"`
		Messages json.RawMessage `json:"Messages"` // a Task's
	}
	if decode(body, &reply) != nil {
		return nil
	}
	for _, raw := range []json.RawMessage{reply.Error.Extended, reply.Extended, reply.Messages} {
		if messages := messageList(raw); len(messages) > 0 {
			return messages
		}
	}
	if reply.Error.Code == "" && reply.Error.Message == "" {
		return nil
	}
	return []message{{ID: reply.Error.Code, Text: reply.Error.Message}}
}

// messageList: ExtendedInfo is a list by the specification, and a single object on some BMCs.
func messageList(raw json.RawMessage) []message {
	var list []message
	if decode(raw, &list) == nil && len(list) > 0 {
		return list
	}
	var one message
	if decode(raw, &one) == nil && one.ID+one.Text+one.Resolution != "" {
		return []message{one}
	}
	return nil
}
