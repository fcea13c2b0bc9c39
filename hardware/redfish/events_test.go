package redfish

import (
	"net/http"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/redfishtest"
)

// TestSubscriptions: there is one of ours at most, those of others stay, and what a BMC does not know of one is left out.
func TestSubscriptions(t *testing.T) {
	s := redfishtest.StartVendor(t, "hpe-ilo5")
	b, err := dial(t.Context(), pinned(s), quiet(), s.Clock.Pause)
	if err != nil {
		t.Fatal(err)
	}
	left := func() string {
		t.Helper()
		service, err := events{b.driver}.eventService(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all, err := events{b.driver}.subscriptions(t.Context(), service)
		if err != nil {
			t.Fatal(err)
		}
		var words []string
		for _, one := range all {
			words = append(words, string(one.Context+" "+one.Destination))
		}
		return strings.Join(words, ", ")
	}
	subscribe := func(of, to string) {
		t.Helper()
		if err := b.Subscribe(t.Context(), hardware.Subscription{Destination: to, Context: of, Secret: "s3cret"}); err != nil {
			t.Fatal(err)
		}
	}
	subscribe("theirs", "https://198.18.9.9/events")
	s.Script(http.MethodPost, "/redfish/v1/EventService/Subscriptions", redfishtest.Answer{Status: http.StatusBadRequest,
		Body: `{"error":{"@Message.ExtendedInfo":[{"MessageId":"Base.1.8.PropertyUnknown","Message":"The property EventFormatType is unknown","MessageArgs":["EventFormatType"]}]}}`})
	subscribe("ours", "https://198.18.0.1/old")
	subscribe("ours", "https://198.18.0.1/new")
	subscribe("ours", "https://198.18.0.1/new")
	if got := left(); !strings.Contains(got, "theirs https://198.18.9.9/events") || !strings.Contains(got, "ours https://198.18.0.1/new") || strings.Count(got, "https") != 2 {
		t.Errorf("subscriptions %s", got)
	}
	if err := b.Unsubscribe(t.Context(), "ours"); err != nil {
		t.Fatal(err)
	}
	if got := left(); got != "theirs https://198.18.9.9/events" {
		t.Errorf("subscriptions %s", got)
	}
	if err := b.Subscribe(t.Context(), hardware.Subscription{Destination: "http://198.18.0.1/x", Context: "ours"}); err == nil {
		t.Error("events may go over HTTP")
	}
	s.Script(http.MethodPost, "/redfish/v1/EventService/Subscriptions", redfishtest.Answer{Status: http.StatusBadRequest,
		Body: `{"error":{"@Message.ExtendedInfo":[{"MessageId":"Base.1.8.PropertyValueFormatError","Message":"The value s3cret of HttpHeaders is wrong"}]}}`})
	err = b.Subscribe(t.Context(), hardware.Subscription{Destination: "https://198.18.0.1/x", Context: "ours", Secret: "s3cret"})
	if err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a refusal that repeats the secret: %v", err)
	}
}
