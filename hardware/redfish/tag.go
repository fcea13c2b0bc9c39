package redfish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// tagResource is a resource that carries an asset tag.
type tagResource struct {
	path, etag, tag string
}

// assetTag reads the tag where it would be written.
func (r *driver) assetTag(ctx context.Context) (string, error) {
	places, err := r.tagResources(ctx)
	if err != nil {
		return "", err
	}
	return places[0].tag, nil
}

// setAssetTag writes the tag to the first resource that takes it and then shows it. A BMC whose system refuses may have
// a chassis that does not: SMBIOS has the tag in the chassis's structure (type 3).
func (r *driver) setAssetTag(ctx context.Context, tag string) error {
	places, err := r.tagResources(ctx)
	if err != nil {
		return err
	}
	var refusals error
	for _, place := range places {
		if place.tag == tag {
			return nil
		}
		err := r.writeTag(ctx, place, tag)
		if err == nil {
			return nil
		}
		if tag != "" {
			err = redacted{err, tag}
		}
		if !passedOver(err) {
			return err
		}
		refusals = errors.Join(refusals, err)
	}
	if errors.Is(refusals, hardware.ErrForbidden) {
		return fmt.Errorf("asset tag: %w", refusals)
	}
	return fmt.Errorf("%w: asset tag: %w", hardware.ErrUnsupported, refusals)
}

// redacted keeps a secret out of an error's text: BMCs repeat the value that they refuse.
type redacted struct {
	err    error
	secret string
}

func (r redacted) Error() string { return strings.ReplaceAll(r.err.Error(), r.secret, "(withheld)") }

func (r redacted) Unwrap() error { return r.err }

// passedOver says whether another resource may still take what this one did not.
func passedOver(err error) bool {
	var no *refusal
	if !errors.As(err, &no) {
		return errors.Is(err, errTagNotShown)
	}
	switch no.status {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	}
	return false
}

var errTagNotShown = errors.New("the BMC took the asset tag but does not show it")

// writeTag writes one resource and reads back until it shows the tag; some need a moment.
func (r *driver) writeTag(ctx context.Context, place tagResource, tag string) error {
	if err := r.patch(ctx, &write{path: place.path, etag: place.etag, fields: map[string]any{"AssetTag": tag}, secret: tag}); err != nil {
		return err
	}
	for range 4 {
		now, ok, err := r.readTag(ctx, place.path)
		if err != nil {
			return fmt.Errorf("read back: %w", err)
		}
		if ok && now.tag == tag {
			return nil
		}
		if err := r.transport.pause(ctx, 2*time.Second); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: %w", place.path, errTagNotShown)
}

// tagResources lists what has an asset tag: the system, its settings object (iDRAC 10's system is read-only), its
// chassis (Supermicro X10's system has none). It is never empty without an error.
func (r *driver) tagResources(ctx context.Context) ([]tagResource, error) {
	sys, _, err := r.system(ctx)
	if err != nil {
		return nil, err
	}
	var places []tagResource
	for _, at := range []string{r.systemPath, string(sys.Settings.Object.ID), sys.Links.Chassis.first()} {
		if at == "" {
			continue
		}
		place, ok, err := r.readTag(ctx, at)
		if ignoreRefusal(err) != nil {
			return nil, err
		}
		if ok {
			places = append(places, place)
		}
	}
	if len(places) == 0 {
		return nil, fmt.Errorf("%w: neither system nor chassis has an asset tag", hardware.ErrUnsupported)
	}
	return places, nil
}

// readTag reads one resource; false when it has no asset tag. A tag that was never set may be null, and some BMCs fill
// the field with blanks.
func (r *driver) readTag(ctx context.Context, at string) (tagResource, bool, error) {
	var resource struct {
		AssetTag json.RawMessage `json:"AssetTag"`
	}
	etag, err := r.get(ctx, at, &resource)
	if err != nil || len(resource.AssetTag) == 0 {
		return tagResource{}, false, err
	}
	var tag string
	_ = decode(resource.AssetTag, &tag) // null reads as empty
	return tagResource{path: at, etag: etag, tag: strings.TrimRight(tag, " ")}, true, nil
}
