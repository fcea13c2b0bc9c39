package server

import (
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

func TestDifference(t *testing.T) {
	old, now := testsite.NewMachine("r1", "52:54:00:00:00:01"), testsite.NewMachine("r1", "52:54:00:00:00:01", "52:54:00:00:00:02")
	now.Metadata.Labels = map[string]string{"a/b": "c"}
	now.Status.Phase = api.PhaseActive
	got := difference(old, now)
	if len(got) != 2 || got[0].Pointer != "/metadata/labels" || got[1].Pointer != "/spec/links/1" || got[1].Old != nil {
		t.Errorf("%+v", got)
	}
	if got := difference(nil, now); len(got) != 1 || got[0].Pointer != "" || got[0].Old != nil {
		t.Errorf("created: %+v", got)
	}
}
