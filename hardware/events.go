package hardware

import (
	"fmt"
	"net/url"
)

// Subscription is where a BMC sends its events, over HTTPS.
type Subscription struct {
	Destination string // an https URL; each BMC has its own, which identifies it
	Context     string // the BMC repeats it in each event; it marks the subscriptions that are ours
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
