package redfish

import (
	"time"
)

// retry is how long to bear a refusal that passes by itself.
type retry struct {
	message string // in a MessageId or Message; empty matches any
	status  int    // 0 matches any
	tries   int
	first   time.Duration // doubles up to most
	most    time.Duration
}

// busyRetries are borne for every request, by the transport.
func busyRetries() []retry {
	return []retry{
		{message: "SessionLimitExceeded", tries: 1},                                                           // see loginWithoutSession
		{message: "UnableToModifyDuringSystemPOST", tries: 6, first: 5 * time.Second, most: 30 * time.Second}, // HPE (sushy)
		{message: "RAC0218", tries: 6, first: 10 * time.Second, most: 30 * time.Second},                       // Dell: all sessions taken
		{message: "SYS518", tries: 6, first: 10 * time.Second, most: 10 * time.Second},                        // Dell: iDRAC is reloading
		{status: 503, tries: 6, first: 5 * time.Second, most: 30 * time.Second},
		{status: 429, tries: 6, first: 5 * time.Second, most: 30 * time.Second},
	}
}

// powerRetries are borne for power actions, after a look whether the server is where it should be: the same
// answers also mean "already on".
func powerRetries() []retry {
	return []retry{
		{message: "ActionParameterValueConflict", tries: 6, first: 10 * time.Second, most: 10 * time.Second},  // iDRAC 10, passing 409
		{message: "InvalidOperationForSystemState", tries: 6, first: 5 * time.Second, most: 30 * time.Second}, // HPE: power changed too recently
	}
}

// find gives the first rule that matches the refusal.
func find(rules []retry, r *refusal) (retry, bool) {
	for _, rule := range rules {
		if (rule.status == 0 || rule.status == r.status) && (rule.message == "" || r.says(rule.message)) {
			return rule, true
		}
	}
	return retry{}, false
}

// pause before try n+1, n from 1.
func (r retry) pause(n int) time.Duration {
	d := r.first
	for ; n > 1 && d < r.most; n-- {
		d *= 2
	}
	return min(d, r.most)
}
