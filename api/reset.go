package api

import "time"

// PowerCommand is a power command of a BootAttempt. It is written down before it
// is sent, so that a bootd that is stopped in between does not send it twice.
type PowerCommand struct {
	Order   string     `json:"order" enum:"on,reset" doc:"The action that was requested of the BMC."`
	Time    time.Time  `json:"time" doc:"When, just before it was sent."`
	Before  *ResetSeen `json:"before,omitempty" doc:"What the BMC reported of the last reset before that."`
	Problem string     `json:"problem,omitzero" doc:"In the BMC's words, why the command was not seen to be carried out, although it was accepted."`
	// Unfinished commands may still be carried out: the BMC's task for them still runs.
	Unfinished bool `json:"unfinished,omitzero" doc:"The BMC's task for it had not ended: only a person has it sent again."`
}

// ResetSeen is what a BMC reported of the server's last reset at some time.
type ResetSeen struct {
	Time   time.Time    `json:"time" doc:"When it was read."`
	Traces []ResetTrace `json:"traces,omitempty" doc:"The properties that a reset changes; none when the BMC tells none."`
	Post   string       `json:"post,omitzero" doc:"State of the power-on self-test, of BMCs that tell it (HPE), such as InPost or FinishedPost."`
}

// ResetTrace is one property that a reset changes.
type ResetTrace struct {
	Source string `json:"source" doc:"Name of the property."`
	Value  string `json:"value" doc:"Its value, as the BMC wrote it."`
}
