package redfish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/rackweft/rackweft/hardware"
)

// walk reads much of a BMC's tree. What the BMC refuses is noted, and the walk goes past it; between two requests others
// may use the BMC.
type walk struct {
	*driver
	sys     system
	manager manager
	inv     *hardware.Inventory
	shelves []chassis       // the system's
	beside  []system        // systems that belong to this one: GPU baseboards, which have no power of their own
	bmcOnly map[string]bool // MACs and paths of interfaces that lead to the BMC alone
}

// mostRequests bounds what one collection may take where each member is read by itself.
const mostRequests = 256

// read reads one resource, false when the BMC refuses it.
func (w *walk) read(ctx context.Context, at string, into any) (bool, error) {
	w.yield(ctx)
	_, err := w.get(ctx, at, into)
	return err == nil, w.noted(err)
}

// noted keeps the refusal of one resource from ending the walk.
func (w *walk) noted(err error) error {
	var no *refusal
	if errors.As(err, &no) && ignoreRefusal(err) == nil {
		w.inv.Incomplete = append(w.inv.Incomplete, no.Error())
		return nil
	}
	return err
}

// yield gives the turn away for a moment.
func (s *Service) yield(ctx context.Context) {
	<-s.turn
	hardware.Yield(ctx)
	s.turn <- struct{}{}
}

// listed reads the members of a collection, at most so many: all in one request where the BMC says that it can do that.
func listed[T any](ctx context.Context, w *walk, at link, most int) ([]T, error) {
	if at.ID == "" {
		return nil, nil
	}
	w.yield(ctx)
	members, err := w.collection(ctx, string(at.ID))
	if err != nil {
		return nil, w.noted(err)
	}
	return expanded[T](ctx, w, members, most)
}

// linked reads resources that are linked to one by one.
func linked[T any](ctx context.Context, w *walk, at links, most int) ([]T, error) {
	members := make([]json.RawMessage, 0, len(at))
	for _, l := range at {
		raw, err := json.Marshal(l)
		if err != nil {
			return nil, err
		}
		members = append(members, raw)
	}
	return expanded[T](ctx, w, members, most)
}

// expanded decodes members, and reads those that are references only.
func expanded[T any](ctx context.Context, w *walk, members []json.RawMessage, most int) (all []T, err error) {
	for i, raw := range members {
		if i == mostRequests || len(all) == most {
			return all, nil
		}
		var one T
		ok, err := w.member(ctx, raw, &one)
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, one)
		}
	}
	return all, nil
}

func (w *walk) member(ctx context.Context, raw json.RawMessage, into any) (bool, error) {
	if !isReference(raw) {
		return true, decode(raw, into)
	}
	var self link
	_ = decode(raw, &self) // it parsed as a part of the collection
	return w.read(ctx, string(self.ID), into)
}

// isReference: a member that is not expanded has nothing but its path.
func isReference(raw json.RawMessage) bool {
	var fields map[string]json.RawMessage
	if decode(raw, &fields) != nil {
		return true
	}
	for name := range fields {
		if !strings.HasPrefix(name, "@") {
			return false
		}
	}
	return true
}

// collection reads the members of a collection, expanded where the BMC says that it can (DSP0266 §7.3.2). A BMC that
// promised and did not do it is not asked for that again.
func (s *Service) collection(ctx context.Context, at string) ([]json.RawMessage, error) {
	if query := s.expand(); query != "" {
		members, err := s.pages(ctx, at+query)
		if ignoreRefusal(err) != nil || err == nil && (len(members) == 0 || !isReference(members[0])) {
			return members, err
		}
		s.plain = true
		if err == nil {
			return members, nil
		}
	}
	return s.pages(ctx, at)
}

func (s *Service) expand() string {
	can := s.root.Features.Expand
	switch {
	case s.plain || !can.NoLinks:
		return ""
	case can.Levels:
		return "?$expand=.($levels=1)"
	}
	return "?$expand=."
}

// pages reads a collection, all its pages.
func (s *Service) pages(ctx context.Context, at string) (all []json.RawMessage, err error) {
	for pages := 0; at != ""; pages++ {
		if pages == 64 {
			return nil, fmt.Errorf("collection %s has no end", at)
		}
		var page struct {
			Members members `json:"Members"`
			Next    text    `json:"Members@odata.nextLink"`
		}
		if _, err := s.get(ctx, at, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Members...)
		at = string(page.Next)
	}
	return all, nil
}

// members are those of a collection as they came; what is no list has none.
type members []json.RawMessage

func (m *members) UnmarshalJSON(data []byte) error {
	var list []json.RawMessage
	if json.Unmarshal(data, &list) == nil {
		*m = list
	}
	return nil
}
