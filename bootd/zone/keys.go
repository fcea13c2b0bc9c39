package zone

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/network"
)

// Keys provides the keys for parts. It is safe for concurrent use; a nil one opens nothing.
type Keys struct {
	// Key is the MD5 key between two Machines, by their uids in any order.
	Key func(one, other string) string
	// Secret opens a Secret for a use.
	Secret func(ctx context.Context, name string, use api.SecretUse) (map[string]string, error)

	mu     sync.Mutex
	opened map[string]opened // Secrets, by name
}

// opened is the content of a version of a Secret.
type opened struct {
	version string
	values  map[string]string
}

// Open implements network.Keys.
func (k *Keys) Open(ctx context.Context, s *api.Secret, use api.SecretUse, uid string) (password, salt string, err error) {
	if k == nil {
		return "", "", network.ErrNoKey
	}
	password, err = k.password(ctx, s, use)
	var none *NoPart
	if errors.As(err, &none) {
		return "", "", network.ErrKeyClosed
	}
	return password, k.salt(uid), err
}

// salt accompanies a person's password in a part of the object with that uid. Without it the part's digest would
// confirm a guess to anyone who sees the rest of the part.
func (k *Keys) salt(uid string) string { return k.Key(uid, "digest") }

// password opens the Secret of an uplink or of guests' sessions, once per version. The caller has checked that s
// permits the use.
func (k *Keys) password(ctx context.Context, s *api.Secret, use api.SecretUse) (string, error) {
	name, version := s.Metadata.Name, s.Metadata.UID+"/"+s.Metadata.ResourceVersion
	k.mu.Lock()
	known, ok := k.opened[name]
	k.mu.Unlock()
	if ok && known.version == version {
		return known.values[api.SessionPassword], nil
	}
	values, err := k.Secret(ctx, name, use)
	var refused *api.NotPermittedError
	switch {
	case errors.As(err, &refused): // the store is ahead of the cache
		return "", &NoPart{err.Error()}
	case errors.Is(err, ca.ErrUnknownKey) || errors.Is(err, ca.ErrTampered):
		return "", &NoPart{fmt.Sprintf("Secret %s cannot be opened: %s", name, err)}
	case err != nil:
		return "", fmt.Errorf("open Secret %s: %w", name, err)
	case len(values[api.SessionPassword]) > api.MaxSessionPassword:
		return "", &NoPart{fmt.Sprintf("the %s in Secret %s has %d bytes, and an MD5 key has %d at most", api.SessionPassword, name, len(values[api.SessionPassword]), api.MaxSessionPassword)}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.opened == nil {
		k.opened = map[string]opened{}
	}
	k.opened[name] = opened{version, values}
	return values[api.SessionPassword], nil
}
