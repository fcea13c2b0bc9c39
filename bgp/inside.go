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

// A speaker inside of a Network writes the prefixes that its own guests are the
// best ways to into a file beside its part, and the host's speaker tells the
// Zone of them where the host's part says so. Neither needs the agent for it; the
// file stays while the one inside restarts, as its routes do.

// GuestsFile is its name.
const GuestsFile = "guests.json"

// mostGuests bounds the file's bytes: a prefix takes 21 at most.
const mostGuests = 4 << 20

// handOver writes the file. With keep, what is in it stays.
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
	// Who reads it meets the old one or the new one.
	if err := file.Replace(path, raw, file.Options{}); err != nil {
		return fmt.Errorf("hand over what guests announce: %w", err)
	}
	return nil
}

// readGuests reads such a file; without one guests announce nothing.
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

// tellOfGuests tells the Zone of what guests announce. What cannot be read just
// now stays as it is.
func (s *speaker) tellOfGuests(ctx context.Context) {
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
		told, more := toldOf(n, list)
		if more > 0 {
			s.status.Guests = fmt.Sprintf("guests of Network %s announce %d prefixes more than the %d that the Zone is told of", n.UID, more, n.MaxPrefixes)
		}
		for _, x := range told {
			// As an aggregate it is announced, or not, by what lies within it.
			if !slices.Contains(s.server.part.Aggregates, x) {
				want[x] = true
			}
		}
	}
	if maps.Equal(want, s.server.guests) {
		return
	}
	if err := s.server.tell(ctx, s.server.part, want, false); err != nil {
		s.options.Log.Warn("bgp: the Zone is not told of all that guests announce", "error", err)
		s.status.Guests = err.Error()
	}
	s.aggregate(ctx)
}

// toldOf is what the Zone is told of a list, and how many more there are.
func toldOf(n api.BGPInside, list []netip.Prefix) (told []netip.Prefix, more int) {
	for _, x := range list {
		if validPrefix(x) && n.Covers(x) && !slices.Contains(told, x) {
			told = append(told, x)
		}
	}
	slices.SortFunc(told, netip.Prefix.Compare)
	if more = len(told) - n.MaxPrefixes; more > 0 {
		return told[:n.MaxPrefixes], more
	}
	return told, 0
}
