package api

import (
	"errors"
	"fmt"
	"strings"
)

// Problem is an RFC 9457 problem document: every error of the API.
type Problem struct {
	Type     string `json:"type,omitzero"`
	Title    string `json:"title"`
	Status   int    `json:"status"`
	Detail   string `json:"detail,omitzero"`
	Instance string `json:"instance,omitzero"`
	// Errors are the invalid fields.
	Errors FieldErrors `json:"errors,omitempty"`
	// ResourceVersion is the current one, after a conflict (409).
	ResourceVersion string `json:"resourceVersion,omitzero"`
}

func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.Title)
	if p.Detail != "" {
		fmt.Fprintf(&b, ": %s", p.Detail)
	}
	for _, f := range p.Errors {
		fmt.Fprintf(&b, "\n  %s", f.Error())
	}
	return b.String()
}

// IsStatus reports whether err is a Problem with that HTTP status.
func IsStatus(err error, status int) bool {
	var p *Problem
	return errors.As(err, &p) && p.Status == status
}
