package bmc

import (
	"net/http"
	"net/url"
	"slices"
)

func (s *system) patchBoot(r *http.Request, properties map[string]any) (*message, error) {
	if refused := s.bootRefused(); refused != nil {
		return refused, nil
	}
	override := s.Machine.Override()
	if override.Target == "" {
		override.Target = None
	}
	s.mu.Lock()
	uri := s.httpBootURI
	s.mu.Unlock()

	enabled := ""
	for name, value := range properties {
		text, ok := value.(string)
		if !ok {
			return badValue(name, value), nil
		}
		switch name {
		case "BootSourceOverrideTarget":
			if !slices.Contains(s.bootTargets(), Target(text)) {
				return badValue(name, text), nil
			}
			override.Target = Target(text)
		case "BootSourceOverrideEnabled":
			if !slices.Contains([]string{"Disabled", "Once", "Continuous"}, text) {
				return badValue(name, text), nil
			}
			enabled = text
		case "BootSourceOverrideMode":
			if Firmware(text) != s.Inventory.Firmware {
				return badValue(name, text), nil
			}
		case "HttpBootUri":
			if !s.bootsHTTP() {
				return unknownProperty(name), nil
			}
			if parsed, err := url.Parse(text); text != "" && (err != nil || parsed.Host == "" || len(text) > 2048) {
				return badValue(name, text), nil
			}
			uri = text
		default:
			return unknownProperty(name), nil
		}
	}
	switch {
	case enabled == "Disabled":
		override = Override{Target: None}
	case enabled != "":
		override.Once = enabled == "Once"
	case override.Target != s.Machine.Override().Target:
		// A target alone means once, as on iLO.
		override.Once = true
	}
	if override.Target == None {
		override.Once = false
	}
	override.URI = ""
	if override.Target == UefiHTTP {
		override.URI = uri
	}
	if err := s.Machine.SetOverride(r.Context(), override); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.httpBootURI = uri
	s.mu.Unlock()
	return nil, nil
}

func (s *system) bootResource() resource {
	override := s.Machine.Override()
	s.mu.Lock()
	uri := s.httpBootURI
	s.mu.Unlock()

	boot := resource{
		"BootSourceOverrideEnabled": "Disabled", "BootSourceOverrideTarget": None,
		"BootSourceOverrideMode":                            s.Inventory.Firmware,
		"BootSourceOverrideEnabled@Redfish.AllowableValues": allow("Disabled", "Once", "Continuous"),
		"BootSourceOverrideTarget@Redfish.AllowableValues":  s.bootTargets(),
		"BootSourceOverrideMode@Redfish.AllowableValues":    []Firmware{s.Inventory.Firmware},
	}
	if s.bootsHTTP() {
		boot["HttpBootUri"] = uri
	}
	if override.Target != None && override.Target != "" {
		boot["BootSourceOverrideTarget"], boot["BootSourceOverrideEnabled"] = override.Target, "Continuous"
		if override.Once {
			boot["BootSourceOverrideEnabled"] = "Once"
		}
	}
	return boot
}

func (s *system) bootTargets() []Target {
	targets := []Target{None, Pxe, Hdd}
	if s.bootsHTTP() {
		targets = append(targets, UefiHTTP)
	}
	if s.media != nil {
		targets = append(targets, s.media.rules.target)
	}
	return targets
}

func (s *system) bootsHTTP() bool { return s.Inventory.Firmware == UEFI && !s.NoHTTPBoot }
