package bmc

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/internal/wait"
)

// EventAccess is how clients get the BMC's events.
type EventAccess string

const (
	StreamAndPost EventAccess = ""       // the stream of server-sent events, and subscriptions
	StreamOnly    EventAccess = "stream" // no subscriptions
	PostOnly      EventAccess = "post"   // no stream, as on iLO 5
	NoEvents      EventAccess = "none"   // no event service
)

func (a EventAccess) stream() bool { return a == StreamAndPost || a == StreamOnly }
func (a EventAccess) post() bool   { return a == StreamAndPost || a == PostOnly }

const (
	eventsPath        = root + "/EventService"
	subscriptionsPath = eventsPath + "/Subscriptions"
	testEventAction   = eventsPath + "/Actions/EventService.SubmitTestEvent"

	maxSubscriptions = 8
	deliveryAttempts = 3
	deliveryTime     = 10 * time.Second // for one attempt
)

// What happens to a subscription whose destination does not answer
// (DeliveryRetryPolicy).
const (
	terminateAfterRetries = "TerminateAfterRetries"
	suspendRetries        = "SuspendRetries"
	retryForever          = "RetryForever"
)

// eventDestination is what a client sends to subscribe (EventDestination
// schema).
type eventDestination struct {
	Destination         string
	Protocol            string
	Context             string
	EventFormatType     string
	SubscriptionType    string
	DeliveryRetryPolicy string
	VerifyCertificate   bool
	EventTypes          []string
	RegistryPrefixes    []string
	ResourceTypes       []string
	MessageIds          []string
	OriginResources     []struct {
		ID string `json:"@odata.id"`
	}
	HTTPHeaders []map[string]string `json:"HttpHeaders"`
}

// check completes the defaults and says what is wrong.
func (d *eventDestination) check() *message {
	parsed, err := url.Parse(d.Destination)
	if err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Host == "" || len(d.Destination) > 2048 {
		return badValue("Destination", d.Destination)
	}
	for _, one := range []struct {
		name    string
		value   *string
		allowed []string // the first is the default
	}{
		{"Protocol", &d.Protocol, []string{"Redfish"}},
		{"EventFormatType", &d.EventFormatType, []string{"Event"}},
		{"SubscriptionType", &d.SubscriptionType, []string{"RedfishEvent"}},
		{"DeliveryRetryPolicy", &d.DeliveryRetryPolicy, []string{terminateAfterRetries, suspendRetries, retryForever}},
	} {
		if *one.value == "" {
			*one.value = one.allowed[0]
		}
		if !slices.Contains(one.allowed, *one.value) {
			return badValue(one.name, *one.value)
		}
	}
	for _, set := range d.HTTPHeaders {
		for name, value := range set {
			if name == "" || strings.ContainsAny(name, " \t\r\n:") || strings.ContainsAny(value, "\r\n") {
				return badValue("HttpHeaders", name)
			}
		}
	}
	return nil
}

// wants reports whether the subscription's filters let the event pass.
func (d *eventDestination) wants(e entry) bool {
	registry, _, _ := strings.Cut(e.messageID(), ".")
	if len(d.RegistryPrefixes) > 0 && !slices.Contains(d.RegistryPrefixes, registry) {
		return false
	}
	if len(d.ResourceTypes) > 0 && !slices.Contains(d.ResourceTypes, "ComputerSystem") {
		return false
	}
	if len(d.MessageIds) > 0 && !slices.Contains(d.MessageIds, e.messageID()) {
		return false
	}
	for _, origin := range d.OriginResources {
		if origin.ID == e.system.path {
			return true
		}
	}
	return len(d.OriginResources) == 0
}

// subscriptions are the destinations that events are posted to.
type subscriptions struct {
	config Config
	events *eventLog
	log    *slog.Logger
	base   context.Context
	work   *sync.WaitGroup // of the deliveries

	mu     sync.Mutex // guards the fields below
	serial int
	all    map[int]*subscription
}

type subscription struct {
	eventDestination
	id     int
	cancel context.CancelFunc
	ended  bool // suspended; guarded by subscriptions.mu
}

func (s *subscription) path() string { return subscriptionsPath + "/" + strconv.Itoa(s.id) }

// resource renders a subscription. The caller holds subscriptions.mu.
func (s *subscription) resource() resource {
	status := enabled()
	if s.ended {
		status = resource{"State": "Disabled", "Health": "Critical"}
	}
	origins := []resource{}
	for _, one := range s.OriginResources {
		origins = append(origins, link(one.ID))
	}
	return resource{
		"@odata.id": s.path(), "@odata.type": "#EventDestination.v1_13_1.EventDestination", "Id": strconv.Itoa(s.id), "Name": "Event Subscription",
		"Destination": s.Destination, "Protocol": s.Protocol, "Context": s.Context, "EventFormatType": s.EventFormatType,
		"SubscriptionType": s.SubscriptionType, "DeliveryRetryPolicy": s.DeliveryRetryPolicy, "VerifyCertificate": s.VerifyCertificate,
		"RegistryPrefixes": allow(s.RegistryPrefixes...), "ResourceTypes": allow(s.ResourceTypes...), "MessageIds": allow(s.MessageIds...),
		"OriginResources": origins, "HttpHeaders": []string{}, "Status": status, // the headers may be secrets
	}
}

// subscribe adds a destination.
func (s *subscriptions) subscribe(w http.ResponseWriter, r *http.Request) {
	var wanted eventDestination
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&wanted); err != nil {
		fail(w, http.StatusBadRequest, malformedJSON())
		return
	}
	if refused := wanted.check(); refused != nil {
		fail(w, http.StatusBadRequest, *refused)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) >= maxSubscriptions {
		fail(w, http.StatusServiceUnavailable, message{ID: "Base.1.16.EventSubscriptionLimitExceeded", Severity: "Critical",
			Text:       "The event subscription failed due to the number of simultaneous subscriptions exceeding the limit of the implementation.",
			Resolution: "Reduce the number of other subscriptions before trying to establish the event subscription or increase the limit of simultaneous subscriptions, if supported."})
		return
	}
	s.serial++
	ctx, cancel := context.WithCancel(s.base)
	added := &subscription{eventDestination: wanted, id: s.serial, cancel: cancel}
	s.all[added.id] = added
	events := s.events.listen() // before the answer: nothing is missed
	s.work.Go(func() { s.deliver(ctx, added, events) })
	w.Header().Set("Location", added.path())
	reply(w, http.StatusCreated, added.resource())
}

// unsubscribe removes a destination.
func (s *subscriptions) unsubscribe(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil || !s.drop(id) {
		fail(w, http.StatusNotFound, missing(r.URL.Path))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *subscriptions) drop(id int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.all[id]
	if ok {
		one.cancel()
		delete(s.all, id)
	}
	return ok
}

func (s *subscriptions) addTo(t tree) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.all {
		t[one.path()] = one.resource()
	}
	t.collect(subscriptionsPath, "EventDestination", "Event Subscriptions")
}

// deliver posts the events to one destination, in order, until ctx ends or the
// destination is given up.
func (s *subscriptions) deliver(ctx context.Context, to *subscription, events chan entry) {
	defer func() { s.events.leave(events) }()
	client := s.config.Dial.client(to.VerifyCertificate, nil)
	defer client.CloseIdleConnections()
	for {
		select {
		case <-ctx.Done():
			return
		case e, open := <-events:
			if !open { // too slow: the events in between are lost
				events = s.events.listen()
				continue
			}
			if to.wants(e) && !s.send(ctx, client, to, e) {
				s.giveUp(to)
				return
			}
		}
	}
}

// send posts one event, again when it fails, and reports whether the
// subscription stays.
func (s *subscriptions) send(ctx context.Context, client *http.Client, to *subscription, e entry) bool {
	for attempt := 1; ; attempt++ {
		err := post(ctx, client, to, e)
		if err == nil || ctx.Err() != nil {
			return true
		}
		s.log.Warn("event not delivered", "bmc", s.config.Address.String(), "destination", to.Destination, "attempt", attempt, "error", err)
		if attempt >= deliveryAttempts && to.DeliveryRetryPolicy != retryForever {
			return false
		}
		if wait.For(ctx, s.config.EventRetry) != nil {
			return true
		}
	}
}

func (s *subscriptions) giveUp(to *subscription) {
	if to.DeliveryRetryPolicy == terminateAfterRetries {
		s.drop(to.id)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	to.ended = true
}

func post(ctx context.Context, client *http.Client, to *subscription, e entry) error {
	ctx, cancel := context.WithTimeout(ctx, deliveryTime)
	defer cancel()
	body, err := json.Marshal(e.payload(to.Context))
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to.Destination, bytes.NewReader(body))
	if err != nil {
		return err
	}
	for _, set := range to.HTTPHeaders {
		for name, value := range set {
			request.Header.Set(name, value)
		}
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	_ = response.Body.Close()
	if response.StatusCode >= 300 {
		return fmt.Errorf("the destination answers %s", response.Status)
	}
	return nil
}

// submitTest sends an event to all who listen, and logs none.
func (s *Server) submitTest(w http.ResponseWriter, r *http.Request) {
	if _, ok := readBody(w, r); !ok {
		return
	}
	s.events.test(s.time(), s.systems[0])
	w.WriteHeader(http.StatusNoContent)
}
