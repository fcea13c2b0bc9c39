package admission

import (
	"github.com/rackweft/rackweft/api"
)

func secretRules() rules {
	return rules{
		kind: "Secret",
		judge: func(v *Verdict, w *World, o, current api.Object) {
			v.secret(w, o.(*api.Secret), current)
			v.secretStops(w, o.(*api.Secret))
		},
		keys: func(o api.Object) []key { return secretKeys(o.(*api.Secret)) },
	}
}

// secretKeys find the Secrets that objects receive and operators may not know.
func secretKeys(s *api.Secret) []key {
	if s.Spec.Uses == nil || s.Spec.Uses.Operators {
		return nil
	}
	var list []key
	for _, l := range s.Spec.Uses.Layers {
		list = append(list, key{givenLayer, l})
	}
	for _, g := range s.Spec.Uses.Guests {
		list = append(list, key{givenGuest, g}, key{givenGuests, ""})
	}
	return list
}

// secret refuses a Secret without values, as a read returns it, in place of one that has values.
func (v *Verdict) secret(w *World, o *api.Secret, current api.Object) {
	v.sessionKey(w, o)
	old, ok := current.(*api.Secret)
	if ok && len(o.Spec.Data) == 0 && o.Spec.Uses == nil && len(old.Status.Digests) > 0 {
		v.fail("/spec/data", "no values are given, but the stored Secret has some: a read never shows them, so write all of them again, or delete the Secret")
	}
}

// sessionKey refuses to remove the key of an uplink's or of guests' sessions.
func (v *Verdict) sessionKey(w *World, s *api.Secret) {
	if len(s.Spec.Data) == 0 {
		return
	}
	check := func(at, of string) {
		switch n := len(s.Spec.Data[api.SessionPassword]); {
		case n == 0:
			v.fail("/spec/data", "%s is missing: %s of %s takes the session's MD5 key from it", api.SessionPassword, at, of)
		case n > api.MaxSessionPassword:
			v.fail("/spec/data/"+api.SessionPassword, "it has %d bytes, and an MD5 key has at most %d: %s of %s", n, api.MaxSessionPassword, at, of)
		}
	}
	for _, z := range referrersOf[*api.Zone](w, "Secret", s.Metadata.Name) {
		for i, u := range z.Spec.Uplinks {
			if u.Secret == s.Metadata.Name {
				check(api.Pointer("spec", "uplinks", i, "secret"), "Zone "+z.Metadata.Name)
			}
		}
	}
	for _, n := range referrersOf[*api.Network](w, "Secret", s.Metadata.Name) {
		if p := n.Spec.Peering; p != nil && p.Secret == s.Metadata.Name {
			check("/spec/peering/secret", "Network "+n.Metadata.Name)
		}
	}
}
