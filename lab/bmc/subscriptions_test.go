package bmc_test

import (
	"bufio"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/lab/bmc"
)

const subscribed = "/redfish/v1/EventService/Subscriptions"

// delivery is what a destination gets.
type delivery struct {
	Context string
	Secret  string `json:"-"`
	Events  []struct {
		MessageID         string `json:"MessageId"`
		OriginOfCondition struct {
			ID string `json:"@odata.id"`
		}
	}
}

// destination receives events; status is called for what to answer each.
func destination(t *testing.T, status func() int) (url string, got chan delivery) {
	t.Helper()
	got = make(chan delivery, 16)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var one delivery
		if err := json.NewDecoder(r.Body).Decode(&one); err != nil || r.Method != http.MethodPost {
			t.Errorf("%s: %v", r.Method, err)
		}
		one.Secret = r.Header.Get("X-Secret")
		code := http.StatusNoContent
		if status != nil {
			code = status()
		}
		w.WriteHeader(code)
		got <- one
	}))
	t.Cleanup(server.Close)
	return server.URL + "/events", got
}

func next(t *testing.T, got chan delivery) delivery {
	t.Helper()
	select {
	case one := <-got:
		return one
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
		return delivery{}
	}
}

func TestSubscription(t *testing.T) {
	server, machine, address := serve(t, nil)
	c := newClient(t, address)
	url, got := destination(t, nil)
	response, body := c.do("POST", subscribed, `{"Destination":"`+url+`","Protocol":"Redfish","Context":"r1u01","EventTypes":["Alert"],`+
		`"HttpHeaders":[{"X-Secret":"7"}],"OriginResources":[{"@odata.id":"`+system+`"}],"RegistryPrefixes":["ResourceEvent"]}`)
	at := response.Header.Get("Location")
	if response.StatusCode != 201 || at == "" || body["@odata.id"] != at || body["Context"] != "r1u01" {
		t.Fatalf("%s, Location %q: %v", response.Status, at, body)
	}
	if headers, _ := c.want(200, "GET", at, "")["HttpHeaders"].([]any); len(headers) != 0 {
		t.Errorf("the headers are shown: %v", headers)
	}
	c.crawl()
	for _, want := range []struct {
		kind bmc.EventKind
		id   string
	}{{bmc.PoweredOn, "ResourcePoweredOn"}, {bmc.Reset, "ResourceStateChanged"}, {bmc.PoweredOff, "ResourcePoweredOff"}} {
		_ = machine.become(bmc.On, want.kind)
		one := next(t, got)
		if one.Context != "r1u01" || one.Secret != "7" || len(one.Events) != 1 || !strings.HasSuffix(one.Events[0].MessageID, want.id) ||
			one.Events[0].OriginOfCondition.ID != system {
			t.Fatalf("%+v, want %s", one, want.id)
		}
	}
	c.want(204, "POST", "/redfish/v1/EventService/Actions/EventService.SubmitTestEvent", "{}")
	if one := next(t, got); !strings.HasSuffix(one.Events[0].MessageID, "TestMessage") {
		t.Errorf("the test event is %+v", one)
	}
	server.LoseEvents(true)
	_ = machine.become(bmc.On, bmc.Reset)
	server.LoseEvents(false)
	c.want(204, "DELETE", at, "")
	c.want(404, "DELETE", at, "")
	_ = machine.become(bmc.On, bmc.Reset)
	if entries := c.want(200, "GET", system+"/LogServices/EventLog/Entries", ""); entries["Members@odata.count"] != 5.0 {
		t.Errorf("%v log entries, want 5", entries["Members@odata.count"])
	}
	if err := server.Close(); err != nil { // ends deliveries
		t.Fatal(err)
	}
	if len(got) > 0 {
		t.Errorf("delivered although it was lost or unsubscribed: %+v", <-got)
	}
}

func TestSubscriptionFilters(t *testing.T) {
	_, machine, address := serve(t, nil)
	c := newClient(t, address)
	url, got := destination(t, nil)
	for _, filter := range []string{`"RegistryPrefixes":["Heartbeat"]`, `"ResourceTypes":["Drive"]`, `"MessageIds":["ResourceEvent.1.3.ResourcePoweredOff"]`,
		`"OriginResources":[{"@odata.id":"/redfish/v1/Systems/2"}]`} {
		c.want(201, "POST", subscribed, `{"Destination":"`+url+`","Context":"filtered",`+filter+`}`)
	}
	c.want(201, "POST", subscribed, `{"Destination":"`+url+`","Context":"all"}`)
	_ = machine.become(bmc.On, bmc.PoweredOn)
	_ = machine.become(bmc.On, bmc.Reset)
	for range 2 {
		if one := next(t, got); one.Context != "all" {
			t.Errorf("%+v", one)
		}
	}
	_ = machine.become(bmc.Off, bmc.PoweredOff)
	contexts := map[string]int{}
	for range 2 {
		contexts[next(t, got).Context]++
	}
	if contexts["filtered"] != 1 || contexts["all"] != 1 {
		t.Errorf("the last event went to %v", contexts)
	}
}

func TestDeliveryIsTriedAgain(t *testing.T) {
	tests := []struct {
		policy   string
		failures int
		state    string // of the subscription at last; empty: it is gone
	}{
		{"TerminateAfterRetries", 2, "Enabled"},
		{"TerminateAfterRetries", 99, ""},
		{"SuspendRetries", 99, "Disabled"},
		{"RetryForever", 7, "Enabled"},
	}
	for _, tt := range tests {
		t.Run(tt.policy+" "+strconv.Itoa(tt.failures), func(t *testing.T) {
			_, machine, address := serve(t, func(c *bmc.Config) { c.EventRetry = time.Millisecond })
			c := newClient(t, address)
			calls := 0
			url, got := destination(t, func() int { // one at a time
				if calls++; calls <= tt.failures {
					return http.StatusServiceUnavailable
				}
				return http.StatusOK
			})
			response, _ := c.do("POST", subscribed, `{"Destination":"`+url+`","DeliveryRetryPolicy":"`+tt.policy+`"}`)
			at := response.Header.Get("Location")
			_ = machine.become(bmc.On, bmc.PoweredOn)
			attempts := 3
			if tt.state == "Enabled" {
				attempts = tt.failures + 1
			}
			for range attempts {
				next(t, got)
			}
			if tt.state == "" {
				eventually(t, "the subscription is gone", func() bool { response, _ := c.do("GET", at, ""); return response.StatusCode == 404 })
				return
			}
			eventually(t, "the subscription is "+tt.state, func() bool {
				status, _ := c.want(200, "GET", at, "")["Status"].(map[string]any)
				return status["State"] == tt.state
			})
		})
	}
}

func TestSubscriptionsRefused(t *testing.T) {
	_, _, address := serve(t, nil)
	c := newClient(t, address)
	for _, body := range []string{`{`, `{}`, `{"Destination":"mailto:me"}`, `{"Destination":"https://x/","Protocol":"SNMPv3"}`,
		`{"Destination":"https://x/","EventFormatType":"MetricReport"}`, `{"Destination":"https://x/","DeliveryRetryPolicy":"Never"}`,
		`{"Destination":"https://x/","HttpHeaders":[{"X":"1\r\nY: 2"}]}`} {
		c.want(400, "POST", subscribed, body)
	}
	for range 8 {
		c.want(201, "POST", subscribed, `{"Destination":"https://127.0.0.1:1/"}`)
	}
	c.want(503, "POST", subscribed, `{"Destination":"https://127.0.0.1:1/"}`)
}

func TestEventAccess(t *testing.T) {
	tests := []struct {
		access            bmc.EventAccess
		service, stream   bool
		subscribe, submit int
	}{
		{bmc.StreamAndPost, true, true, 201, 204},
		{bmc.StreamOnly, true, true, 405, 204},
		{bmc.PostOnly, true, false, 201, 204},
		{bmc.NoEvents, false, false, 404, 404},
	}
	for _, tt := range tests {
		_, _, address := serve(t, func(c *bmc.Config) { c.Events = tt.access })
		c := newClient(t, address)
		if got := c.want(200, "GET", "/redfish/v1", "")["EventService"] != nil; got != tt.service {
			t.Errorf("%q: event service %v", tt.access, got)
		}
		c.want(tt.subscribe, "POST", subscribed, `{"Destination":"https://127.0.0.1:1/"}`)
		c.want(tt.submit, "POST", "/redfish/v1/EventService/Actions/EventService.SubmitTestEvent", "{}")
		if !tt.service {
			continue
		}
		if got := c.want(200, "GET", "/redfish/v1/EventService", "")["ServerSentEventUri"] != nil; got != tt.stream {
			t.Errorf("%q: stream %v", tt.access, got)
		}
		if !tt.stream {
			c.want(404, "GET", "/redfish/v1/EventService/SSE", "")
		}
	}
}

// A client of the stream sees the events of every system, and a BMC that closes ends it.
func TestStreamOfSeveralSystems(t *testing.T) {
	server, _, address := serve(t, func(c *bmc.Config) {
		c.Systems = append(c.Systems, bmc.SystemConfig{Machine: &fakeMachine{power: bmc.Off}})
	})
	c := newClient(t, address)
	request, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+address+"/redfish/v1/EventService/SSE", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.SetBasicAuth("admin", password)
	stream, err := c.http.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Body.Close() }()
	server.Notify(bmc.Event{Kind: bmc.PoweredOn, System: "2", Cause: "the test"})
	server.Notify(bmc.Event{Kind: bmc.Reset, System: "1", Cause: "the test"})
	var origins []string
	lines := bufio.NewScanner(stream.Body)
	for len(origins) < 2 && lines.Scan() {
		data, is := strings.CutPrefix(lines.Text(), "data: ")
		if !is {
			continue
		}
		var one delivery
		if err := json.Unmarshal([]byte(data), &one); err != nil {
			t.Fatal(err)
		}
		origins = append(origins, one.Events[0].OriginOfCondition.ID)
	}
	if got := strings.Join(origins, " "); got != "/redfish/v1/Systems/2 /redfish/v1/Systems/1" {
		t.Errorf("events of %s", got)
	}
}

func FuzzSubscribe(f *testing.F) {
	f.Add(`{"Destination":"https://198.18.0.1/","Context":"x","HttpHeaders":[{"A":"b"}]}`)
	f.Add(`{"OriginResources":[{"@odata.id":7}]}`)
	f.Add(`[]`)
	server, err := bmc.New(bmc.Config{Dir: f.TempDir(), Address: net.IPv4(127, 0, 0, 1), Username: "admin", Password: password,
		Dial:    func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed },
		Systems: []bmc.SystemConfig{{Machine: &fakeMachine{power: bmc.Off}}}}, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = server.Close() })
	handler := server.Handler()
	send := func(t *testing.T, method, path, body string) *httptest.ResponseRecorder {
		request, err := http.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.SetBasicAuth("admin", password)
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		return answer
	}
	f.Fuzz(func(t *testing.T, body string) {
		answer := send(t, "POST", subscribed, body)
		switch answer.Code {
		case http.StatusBadRequest:
			return
		case http.StatusCreated:
		default:
			t.Fatalf("%q: status %d", body, answer.Code)
		}
		at := answer.Header().Get("Location")
		if got := send(t, "GET", at, ""); got.Code != http.StatusOK {
			t.Errorf("%q: its subscription answers %d", body, got.Code)
		}
		if got := send(t, "DELETE", at, ""); got.Code != http.StatusNoContent {
			t.Errorf("%q: its end is answered %d", body, got.Code)
		}
	})
}
