package bmc

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

const logCapacity = 512

// eventLog keeps the last events and sends new ones to its subscribers.
type eventLog struct {
	faults *Faults

	mu        sync.Mutex
	serial    int
	entries   []entry
	listeners map[chan entry]struct{}
}

type entry struct {
	id     int
	time   time.Time
	system *system
	event  Event
}

func newEventLog(faults *Faults) *eventLog {
	return &eventLog{faults: faults, listeners: map[chan entry]struct{}{}}
}

func (l *eventLog) add(now time.Time, s *system, e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serial++
	one := entry{id: l.serial, time: now, system: s, event: e}
	l.entries = append(l.entries, one)
	if len(l.entries) > logCapacity {
		l.entries = l.entries[len(l.entries)-logCapacity:]
	}
	l.send(one)
}

// test sends an event that is not logged.
func (l *eventLog) test(now time.Time, s *system) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serial++
	l.send(entry{id: l.serial, time: now, system: s, event: Event{Kind: testEvent}})
}

// send passes an event to the listeners. The caller holds mu.
func (l *eventLog) send(one entry) {
	if l.faults.now().silent {
		return
	}
	for listener := range l.listeners {
		select {
		case listener <- one:
		default: // too slow: the event is dropped for this subscriber, which can read the log
			delete(l.listeners, listener)
			close(listener)
		}
	}
}

func (l *eventLog) listen() chan entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := make(chan entry, 64)
	l.listeners[c] = struct{}{}
	return c
}

func (l *eventLog) leave(c chan entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.listeners, c)
}

// clear drops the entries of one system.
func (l *eventLog) clear(s *system) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = slices.DeleteFunc(l.entries, func(e entry) bool { return e.system == s })
}

// testEvent is the kind of SubmitTestEvent's.
const testEvent EventKind = "Test"

// messageID returns the ID in DMTF's ResourceEvent registry.
func (e entry) messageID() string {
	switch e.event.Kind {
	case PoweredOn:
		return "ResourceEvent.1.3.ResourcePoweredOn"
	case PoweredOff:
		return "ResourceEvent.1.3.ResourcePoweredOff"
	case testEvent:
		return "ResourceEvent.1.3.TestMessage"
	default:
		return "ResourceEvent.1.3.ResourceStateChanged"
	}
}

func (e entry) text() string {
	switch e.event.Kind {
	case PoweredOn:
		return "The server was powered on by " + e.event.Cause + "."
	case PoweredOff:
		return "The server was powered off by " + e.event.Cause + "."
	case testEvent:
		return "Test message."
	default:
		return "The server was reset by " + e.event.Cause + "."
	}
}

// addTo adds the log service of one system.
func (l *eventLog) addTo(t tree, s *system) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := s.logPath()
	for _, one := range l.entries {
		if one.system != s {
			continue
		}
		t.add(at+"/Entries/"+strconv.Itoa(one.id), "#LogEntry.v1_15_0.LogEntry", "Log Entry "+strconv.Itoa(one.id), resource{
			"EntryType": "Event", "Severity": "OK", "Created": one.time.UTC().Format(time.RFC3339),
			"Message": one.text(), "MessageId": one.messageID(), "MessageArgs": allow(s.path),
			"Links": resource{"OriginOfCondition": link(s.path)},
		})
	}
	t.collect(at+"/Entries", "LogEntry", "Event Log Entries")
	t.add(at, "#LogService.v1_4_0.LogService", "Event Log", resource{
		"ServiceEnabled": true, "MaxNumberOfRecords": logCapacity, "OverWritePolicy": "WrapsWhenFull", "LogEntryType": "Event",
		"Entries": link(at + "/Entries"), "Status": enabled(),
		"Actions": resource{"#LogService.ClearLog": resource{"target": at + clearLogAction}},
	})
	t.collect(s.path+"/LogServices", "LogService", "Log Services")
}

// stream serves the event stream of DSP0266 §12.4 (server-sent events).
func (s *Server) stream(w http.ResponseWriter, r *http.Request) {
	flusher, ok := w.(http.Flusher)
	if !ok {
		fail(w, http.StatusInternalServerError, internal(fmt.Errorf("the connection cannot stream")))
		return
	}
	events := s.events.listen()
	defer s.events.leave(events)
	w.Header().Set("Content-Type", "text/event-stream;charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	flusher.Flush()

	keepAlive := time.NewTicker(30 * time.Second)
	defer keepAlive.Stop()
	for {
		var err error
		select {
		case <-r.Context().Done():
			return
		case <-keepAlive.C:
			_, err = fmt.Fprint(w, ":\n\n")
		case e, open := <-events:
			if !open {
				return
			}
			err = writeEvent(w, e)
		}
		if err != nil {
			return
		}
		flusher.Flush()
	}
}

func writeEvent(w http.ResponseWriter, e entry) error {
	body, err := json.Marshal(e.payload(""))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "id: %d\ndata: %s\n\n", e.id, body)
	return err
}

// payload renders the event (Event schema); context is the subscriber's own
// word, empty without one.
func (e entry) payload(context string) resource {
	event := resource{
		"@odata.type": "#Event.v1_9_0.Event", "Id": strconv.Itoa(e.id), "Name": "Event Array",
		"Events": []resource{{
			"MemberId": "0", "EventId": strconv.Itoa(e.id), "EventType": "Event", "Severity": "OK", "MessageSeverity": "OK",
			"EventTimestamp": e.time.UTC().Format(time.RFC3339), "Message": e.text(), "MessageId": e.messageID(),
			"MessageArgs": allow(e.system.path), "OriginOfCondition": link(e.system.path),
		}},
	}
	if context != "" {
		event["Context"] = context
	}
	return event
}

func (s *Server) addEventService(t tree) {
	access := s.config.Events
	if access == NoEvents {
		return
	}
	service := resource{
		"Status": enabled(), "ServiceEnabled": true,
		"EventFormatTypes": allow("Event"), "RegistryPrefixes": allow("ResourceEvent"), "ResourceTypes": allow("ComputerSystem"),
		"DeliveryRetryAttempts": deliveryAttempts, "DeliveryRetryIntervalSeconds": int(s.config.EventRetry / time.Second),
		"SSEFilterPropertiesSupported": resource{},
		"Subscriptions":                link(subscriptionsPath),
		"Actions":                      resource{"#EventService.SubmitTestEvent": resource{"target": testEventAction}},
	}
	if access.stream() {
		service["ServerSentEventUri"] = ssePath
	}
	t.add(eventsPath, "#EventService.v1_10_0.EventService", "Event Service", service)
	s.subscriptions.addTo(t)
}
