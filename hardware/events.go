package hardware

import (
	"fmt"
	"net/url"
)

// Subscription is where a BMC sends its events, over HTTPS.
type Subscription struct {
	Destination string // an https URL; of its own for each BMC, as nothing else tells them apart
	Context     string // what the BMC repeats in each event, and what tells our subscription from those of others
	Secret      string // the value of the header Authorization that the BMC sends with each event
}

// Check refuses what is not to be sent to a BMC.
func (s Subscription) Check() error {
	u, err := url.Parse(s.Destination)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("invalid destination of events %q: want https://host/path", s.Destination)
	}
	if s.Context == "" {
		return fmt.Errorf("subscription to %s has no context", s.Destination)
	}
	return nil
}
