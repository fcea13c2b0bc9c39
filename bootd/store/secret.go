package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"

	"github.com/rackweft/rackweft/api"
)

// OpenSecret returns a Secret's values in the clear, for a use that the Secret permits: they
// must not be logged, stored or sent to anyone who is not entitled to them.
func OpenSecret(ctx context.Context, s *Store, name string, use api.SecretUse) (map[string]string, error) {
	o, err := s.sealed(ctx, api.KindOf(new(api.Secret)), name)
	if err != nil {
		return nil, err
	}
	secret := o.(*api.Secret)
	if err := secret.Permits(use); err != nil {
		return nil, err
	}
	values := make(map[string]string, len(secret.Spec.Data))
	for field, text := range secret.Spec.Data {
		sealed, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("secret %q: %s is damaged: %w", name, field, err)
		}
		plain, err := s.sealer.Open(sealed, secretAAD(secret, field))
		if err != nil {
			return nil, fmt.Errorf("secret %q: open %s: %w", name, field, err)
		}
		values[field] = string(plain)
	}
	return values, nil
}

// secretAAD binds a sealed value to the field of its object, so that it cannot be opened when copied elsewhere.
func secretAAD(s *api.Secret, field string) []byte {
	return []byte(objectPrefix + "secrets/" + s.Metadata.Name + "/" + s.Metadata.UID + "/" + field)
}

// seal returns o in stored form: itself, or for a Secret a copy with sealed data and digests. Values that are
// already in old stay sealed as they are, so that applying the same Secret twice changes nothing.
func (s *Store) seal(o, old api.Object) (api.Object, error) {
	secret, ok := o.(*api.Secret)
	if !ok {
		return o, nil
	}
	if s.sealer == nil {
		return nil, errors.New("store a Secret: there is no key to seal it with")
	}
	was, _ := old.(*api.Secret)
	if was == nil {
		was = new(api.Secret)
	}
	sealed := *secret
	if len(secret.Spec.Data) == 0 {
		sealed.Spec.Data, sealed.Status.Digests = was.Spec.Data, was.Status.Digests
		return &sealed, nil
	}
	sealed.Spec.Data, sealed.Status.Digests = map[string]string{}, map[string]string{}
	for field, plain := range secret.Spec.Data {
		digest := s.sealer.Digest([]byte(plain))
		sealed.Status.Digests[field] = digest
		if was.Status.Digests[field] == digest && was.Spec.Data[field] != "" {
			sealed.Spec.Data[field] = was.Spec.Data[field]
			continue
		}
		raw, err := s.sealer.Seal([]byte(plain), secretAAD(secret, field))
		if err != nil {
			return nil, fmt.Errorf("secret %q: seal %s: %w", secret.Metadata.Name, field, err)
		}
		sealed.Spec.Data[field] = base64.StdEncoding.EncodeToString(raw)
	}
	return &sealed, nil
}

// reveal copies the fields that the store has set to the caller's object.
func reveal(o, stored api.Object, revision int64) {
	o.Meta().Generation = stored.Meta().Generation
	o.Meta().ResourceVersion = formatRevision(revision)
	if secret, ok := o.(*api.Secret); ok {
		secret.Spec.Data = nil
		secret.Status.Digests = maps.Clone(stored.(*api.Secret).Status.Digests)
	}
}

// redact removes the sealed values from an object that was read.
func redact(o api.Object) {
	if secret, ok := o.(*api.Secret); ok {
		secret.Spec.Data = nil
	}
}
