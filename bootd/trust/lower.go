package trust

import (
	"fmt"

	"github.com/rackweft/rackweft/api"
)

// Lowers says how a change of an object lowers the level that boots must reach; "" when it does not. profile
// finds a Profile by name; next is nil for a deletion, current for a creation.
func Lowers(next, current api.Object, profile func(name string) *api.Profile) string {
	if current == nil {
		return ""
	}
	switch old := current.(type) {
	case *api.Profile:
		now, _ := next.(*api.Profile)
		if now == nil {
			now = new(api.Profile)
		}
		return lower(old.Spec.Trust.Minimum, now.Spec.Trust.Minimum)
	case *api.Machine:
		now, _ := next.(*api.Machine)
		if now == nil {
			now = new(api.Machine)
		}
		if why := lower(old.Spec.Trust.Minimum, now.Spec.Trust.Minimum); why != "" || next == nil {
			return why
		}
		// Another Profile may require less.
		var none api.SiteSpec
		before := Required(none, profile(old.Spec.Profile), old)
		after := Required(none, profile(now.Spec.Profile), now)
		return lower(before.Level, after.Level)
	}
	return ""
}

func lower(before, after api.TrustLevel) string {
	if after.Index() >= before.Index() {
		return ""
	}
	if after == "" {
		return fmt.Sprintf("it removes the trust level %s that boots must reach", before)
	}
	return fmt.Sprintf("it lowers the trust level that boots must reach from %s to %s", before, after)
}
