package redfish

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/rackweft/rackweft/hardware"
)

// mostSubscriptions bounds how many of a BMC are looked at; most allow for 20 at most.
const mostSubscriptions = 64

// events are the subscriptions to a BMC's events.
type events struct{ *driver }

// eventService is what we read of an EventService.
type eventService struct {
	Subscriptions link   `json:"Subscriptions"`
	Types         []text `json:"EventTypesForSubscription"` // deprecated in 1.3, and all that older ones know
	Formats       []text `json:"EventFormatTypes"`
}

// subscription is an EventDestination.
type subscription struct {
	Path        text `json:"@odata.id"`
	Destination text `json:"Destination"`
	Context     text `json:"Context"`
}

// subscribe has the BMC send its events to a destination, once. Subscriptions with the same context to another destination
// are ended: they are of before.
func (r events) subscribe(ctx context.Context, s hardware.Subscription) error {
	service, err := r.eventService(ctx)
	if err != nil {
		return err
	}
	there, err := r.unsubscribeBut(ctx, service, s.Context, s.Destination)
	if err != nil || there {
		return err
	}
	w := service.subscription(s)
	if err := r.patch(ctx, w); err != nil {
		return w.withheld(err)
	}
	all, err := r.subscriptions(ctx, service)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if !slices.ContainsFunc(all, func(o subscription) bool { return string(o.Destination) == s.Destination }) {
		return fmt.Errorf("%s: %w", service.Subscriptions.ID, hardware.ErrNotSeen)
	}
	return nil
}

// subscription is the write that makes one. What a BMC does not know of it is left out, but for where it goes and with what.
func (e eventService) subscription(s hardware.Subscription) *write {
	fields := map[string]any{
		"Destination": s.Destination, "Context": s.Context, "Protocol": "Redfish",
		"HttpHeaders": []map[string]string{{"Authorization": s.Secret}},
	}
	if len(e.Formats) == 0 || slices.Contains(e.Formats, "Event") {
		fields["EventFormatType"] = "Event"
	}
	if len(e.Formats) > 0 {
		fields["SubscriptionType"] = "RedfishEvent"
	}
	var types []text
	for _, t := range []text{"StatusChange", "ResourceUpdated", "ResourceAdded", "ResourceRemoved", "Alert"} {
		if slices.Contains(e.Types, t) {
			types = append(types, t)
		}
	}
	if len(types) > 0 {
		fields["EventTypes"] = types
	}
	return &write{method: http.MethodPost, path: string(e.Subscriptions.ID), fields: fields, secret: s.Secret, droppable: func(field string) bool {
		return field == "EventFormatType" || field == "SubscriptionType" || field == "EventTypes"
	}}
}

// unsubscribe ends the subscriptions with a context.
func (r events) unsubscribe(ctx context.Context, of string) error {
	service, err := r.eventService(ctx)
	if err == nil {
		_, err = r.unsubscribeBut(ctx, service, of, "")
	}
	return err
}

// unsubscribeBut ends those with a context, but for one to a destination, which it looks for.
func (r events) unsubscribeBut(ctx context.Context, service eventService, of, destination string) (there bool, err error) {
	all, err := r.subscriptions(ctx, service)
	if err != nil {
		return false, err
	}
	for _, one := range all {
		switch {
		case string(one.Context) != of:
		case string(one.Destination) == destination && !there:
			there = true
		default:
			if _, err := r.send(ctx, http.MethodDelete, string(one.Path), "", nil); ignoreMissing(err) != nil {
				return there, fmt.Errorf("end the subscription %s: %w", one.Path, err)
			}
		}
	}
	return there, nil
}

func (r events) eventService(ctx context.Context) (e eventService, err error) {
	if r.root.EventService.ID == "" {
		return e, fmt.Errorf("%w: it has no EventService", hardware.ErrUnsupported)
	}
	if _, err := r.get(ctx, string(r.root.EventService.ID), &e); err != nil {
		return e, err
	}
	if e.Subscriptions.ID == "" {
		return e, fmt.Errorf("%w: its EventService takes no subscriptions", hardware.ErrUnsupported)
	}
	return e, nil
}

func (r events) subscriptions(ctx context.Context, e eventService) (all []subscription, err error) {
	paths, err := r.members(ctx, string(e.Subscriptions.ID))
	if err != nil {
		return nil, err
	}
	for _, at := range paths[:min(len(paths), mostSubscriptions)] {
		one := subscription{Path: text(at)}
		if _, err := r.get(ctx, at, &one); ignoreMissing(err) != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}
