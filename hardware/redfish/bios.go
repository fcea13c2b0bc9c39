package redfish

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// bios is a Bios resource (DMTF Bios 1.0), or its settings object, whose attributes the firmware takes over at its next POST.
type bios struct {
	Attributes map[string]any `json:"Attributes"`
	Settings   struct {
		settingsLink
		ApplyTimes []text `json:"SupportedApplyTimes"`
	} `json:"@Redfish.Settings"`
	Oem struct {
		HPE struct {
			Links struct {
				TLS link `json:"TlsConfig"`
			} `json:"Links"`
		} `json:"Hpe"`
	} `json:"Oem"`
}

// urlOfHPE: the URL makes the boot entry "URL File" (HPE UEFI manual, URL Boot File).
func urlOfHPE(url string) map[string]any { return map[string]any{"UrlBootFile": url} }

// urlOfDell: HTTP device 1, which takes a URL only while it is enabled (dell/iDRAC-Redfish-Scripting#306), and checks the
// server's certificate unless its mode of TLS is None. Without a URL it is left as it is: DHCP may give it one.
func urlOfDell(url string) map[string]any {
	if url == "" {
		return map[string]any{"HttpDev1Uri": ""}
	}
	mode := "None"
	if strings.HasPrefix(url, "https:") {
		mode = "OneWay"
	}
	return map[string]any{"HttpDev1EnDis": "Enabled", "HttpDev1TlsMode": mode, "HttpDev1Uri": url}
}

// setBootURL has the firmware boot from a URL at the next HTTP boot, where an attribute of the BIOS says it: with HPE and Dell.
// An empty one takes it back.
func (r *driver) setBootURL(ctx context.Context, url string) error {
	sys, _, err := r.system(ctx)
	if err != nil {
		return err
	}
	if sys.Bios.ID == "" {
		return errNoURL()
	}
	var now bios
	if _, err := r.get(ctx, string(sys.Bios.ID), &now); ignoreMissing(err) != nil {
		return err
	}
	want := r.quirk.bootURL(url)
	for attribute, value := range want {
		_, ok := now.Attributes[attribute]
		if !ok && value == url || now.Settings.Object.ID == "" {
			return errNoURL()
		}
		if !ok {
			delete(want, attribute) // older firmware has fewer
		}
	}
	return r.setAttributes(ctx, now, want, url)
}

func errNoURL() error {
	return fmt.Errorf("%w: it takes no URL for HTTP boot: leave it out and let DHCP give it", hardware.ErrUnsupported)
}

// setAttributes writes attributes of the BIOS into its settings object, and reads them back.
func (r *driver) setAttributes(ctx context.Context, now bios, want map[string]any, url string) error {
	settings := string(now.Settings.Object.ID)
	var pending bios
	etag, err := r.get(ctx, settings, &pending)
	if err != nil {
		return err
	}
	if now.shows(want) && (len(pending.Attributes) == 0 || pending.shows(want)) {
		return nil
	}
	w := &write{path: settings, etag: etag, under: "Attributes", fields: want, secret: url}
	if slices.Contains(now.Settings.ApplyTimes, "OnReset") {
		w.beside = map[string]any{"@Redfish.SettingsApplyTime": map[string]any{"ApplyTime": "OnReset"}} // iDRAC makes its job of it
	}
	// The job ends only after the reset.
	if err := r.patch(ctx, w); err != nil && !errors.Is(err, hardware.ErrUnfinished) {
		return err
	}
	for range 5 {
		if _, err := r.get(ctx, settings, &pending); err != nil {
			return fmt.Errorf("read back: %w", err)
		}
		if pending.shows(want) {
			return nil
		}
		if err := r.transport.pause(ctx, 2*time.Second); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: attributes %s: %w", settings, strings.Join(slices.Sorted(maps.Keys(want)), ", "), hardware.ErrNotSeen)
}

func (b bios) shows(want map[string]any) bool {
	for attribute, value := range want {
		if b.Attributes[attribute] != value {
			return false
		}
	}
	return true
}
