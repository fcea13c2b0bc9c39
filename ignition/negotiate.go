package ignition

import (
	"errors"
	"fmt"
	"mime"
	"slices"
	"strconv"
	"strings"

	"github.com/coreos/go-semver/semver"

	"github.com/rackweft/rackweft/internal/text"
)

const mediaType = "application/vnd.coreos.ignition+json"

// NegotiateVersion picks the newest spec version that rackweft can produce, the
// client's Accept header allows and the image's Ignition understands.
//
// Without Accept, or with one that names no version (as curl sends), imageMax
// decides; an empty imageMax sets no limit. It returns an error if the header
// is malformed, if it refuses Ignition configs, or if no version is old enough.
func NegotiateVersion(accept, imageMax string) (string, error) {
	asked, err := acceptedVersion(accept)
	if err != nil {
		return "", fmt.Errorf("accept header: %w", err)
	}
	var image *semver.Version
	if imageMax != "" {
		if image, err = semver.NewVersion(imageMax); err != nil {
			return "", fmt.Errorf("the image's ignitionVersion %q is not a version such as 3.4.0", text.Clip(imageMax, 80))
		}
	}
	if asked == nil && image == nil {
		return "", errors.New("neither the client nor the image says which Ignition version it understands: set the Image's ignitionVersion")
	}

	versions := Versions()
	for _, version := range slices.Backward(versions) {
		v := semver.New(version)
		if (asked == nil || !asked.LessThan(*v)) && (image == nil || !image.LessThan(*v)) {
			return version, nil
		}
	}
	who, limit := "the client", asked
	if asked == nil || (image != nil && image.LessThan(*asked)) {
		who, limit = "the image", image
	}
	return "", fmt.Errorf("%s understands Ignition up to %s, rackweft needs %s or newer: use an image with Ignition 2.3 or newer",
		who, text.Clip(limit.String(), 80), versions[0])
}

// acceptedVersion parses an Accept header (RFC 9110 §12.5.1). It returns the
// newest version named, or nil when any version is allowed.
func acceptedVersion(accept string) (*semver.Version, error) {
	if strings.TrimSpace(accept) == "" {
		return nil, nil
	}
	var newest *semver.Version
	wildcard := false
	for _, element := range splitList(accept) {
		if strings.TrimSpace(element) == "" {
			continue // RFC 9110 §5.6.1.2: empty elements are ignored
		}
		kind, params, err := mime.ParseMediaType(element)
		if err != nil || !strings.Contains(kind, "/") {
			return nil, fmt.Errorf("%q is not a media range", text.Clip(element, 80))
		}
		if refused, err := zeroQuality(params); err != nil || refused {
			if err != nil {
				return nil, err
			}
			continue
		}
		switch kind {
		case "*/*", "application/*", "application/json":
			wildcard = true
		case mediaType:
			version, err := mediaVersion(params)
			if err != nil {
				return nil, err
			}
			if version == nil {
				wildcard = true
			} else if newest == nil || newest.LessThan(*version) {
				newest = version
			}
		}
	}
	if newest == nil && !wildcard {
		return nil, fmt.Errorf("the client takes %q only, not Ignition configs", text.Clip(accept, 80))
	}
	return newest, nil
}

func mediaVersion(params map[string]string) (*semver.Version, error) {
	wanted, named := params["version"]
	if !named {
		return nil, nil
	}
	version, err := semver.NewVersion(wanted)
	if err != nil {
		return nil, fmt.Errorf("%q is not an Ignition version such as 3.4.0", text.Clip(wanted, 80))
	}
	return version, nil
}

// zeroQuality reports whether a media range is refused by q=0.
func zeroQuality(params map[string]string) (bool, error) {
	weight, given := params["q"]
	if !given {
		return false, nil
	}
	q, err := strconv.ParseFloat(weight, 64)
	if err != nil || !(q >= 0 && q <= 1) {
		return false, fmt.Errorf("q=%q is not a quality from 0 to 1", text.Clip(weight, 80))
	}
	return q == 0, nil
}

// splitList splits at the commas outside quoted strings.
func splitList(list string) []string {
	var elements []string
	start, quoted := 0, false
	for i := 0; i < len(list); i++ {
		switch {
		case quoted && list[i] == '\\':
			i++
		case list[i] == '"':
			quoted = !quoted
		case list[i] == ',' && !quoted:
			elements = append(elements, list[start:i])
			start = i + 1
		}
	}
	return append(elements, list[start:])
}
