package bgp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
)

// A speaker inside a Network writes the prefixes for which its own guests are
// the best paths into a file next to its part, and the host's speaker
// advertises them to the Zone as far as the host's part allows. Neither needs
// the agent for it. The file stays while the inner speaker restarts, as its
// routes do.

// GuestsFile is the name of that file.
const GuestsFile = "guests.json"

// mostGuests bounds the file's bytes: a prefix takes up to 21.
const mostGuests = 4 << 20

// handOver writes the file. With keep, prefixes in it stay.
func (s *speaker) handOver(byTap map[string][]netip.Prefix, keep bool) error {
	path := filepath.Join(filepath.Dir(s.options.Part), GuestsFile)
	var want []netip.Prefix
	for _, list := range byTap {
		want = append(want, list...)
	}
	had, err := readGuests(path)
	if keep && err == nil {
		want = append(want, had...)
	}
	slices.SortFunc(want, netip.Prefix.Compare)
	want = slices.Compact(want)
	if err == nil && slices.Equal(had, want) {
		return nil
	}
	raw, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("encode what guests announce: %w", err)
	}
	// Readers see either the old or the new file.
	if err := file.Replace(path, raw, file.Options{}); err != nil {
		return fmt.Errorf("hand over what guests announce: %w", err)
	}
	return nil
}

// readGuests reads such a file; a missing one means that guests announce
// nothing.
func readGuests(path string) ([]netip.Prefix, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what guests announce: %w", err)
	}
	if info.Size() > mostGuests {
		return nil, fmt.Errorf("read what guests announce: %s has more than %d bytes", path, mostGuests)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read what guests announce: %w", err)
	}
	var list []netip.Prefix
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("read what guests announce, in %s: %w", path, err)
	}
	return list, nil
}

// advertiseGuests advertises the guests' prefixes to the Zone. Those of a file
// that cannot be read stay as they are.
func (s *speaker) advertiseGuests(ctx context.Context) {
	want := map[netip.Prefix]bool{}
	s.status.Guests = ""
	for _, n := range s.server.part.Inside {
		list, err := readGuests(filepath.Join(s.options.Inside, n.UID, GuestsFile))
		if err != nil {
			s.status.Guests = err.Error()
			for x := range s.server.guests {
				if n.Covers(x) {
					want[x] = true
				}
			}
			continue
		}
		advertised, more := advertisedOf(n, list)
		if more > 0 {
			s.status.Guests = fmt.Sprintf("guests of Network %s announce %d prefixes more than the %d that are advertised to the Zone", n.UID, more, n.MaxPrefixes)
		}
		for _, x := range advertised {
			// A prefix that is also an aggregate is announced according to the
			// routes within it.
			if !slices.Contains(s.server.part.Aggregates, x) {
				want[x] = true
			}
		}
	}
	if maps.Equal(want, s.server.guests) {
		return
	}
	if err := s.server.originateGuests(ctx, s.server.part, want, false); err != nil {
		s.options.Log.Warn("bgp: not all prefixes of guests are advertised to the Zone", "error", err)
		s.status.Guests = err.Error()
	}
	s.aggregate(ctx)
}

// advertisedOf returns the prefixes of a list that are advertised to the Zone, and
// the number of the rest.
func advertisedOf(n api.BGPInside, list []netip.Prefix) (advertised []netip.Prefix, more int) {
	for _, x := range list {
		if validPrefix(x) && n.Covers(x) && !slices.Contains(advertised, x) {
			advertised = append(advertised, x)
		}
	}
	slices.SortFunc(advertised, netip.Prefix.Compare)
	if more = len(advertised) - n.MaxPrefixes; more > 0 {
		return advertised[:n.MaxPrefixes], more
	}
	return advertised, 0
}
