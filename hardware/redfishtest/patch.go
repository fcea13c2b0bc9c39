package redfishtest

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// patch answers a PATCH.
func (b *BMC) patch(w *reply, q *request) {
	resource := b.tree[q.path]
	if resource == nil {
		w.missing(q.path)
		return
	}
	if b.refusesETag(w, q) {
		return
	}
	var sent Resource
	if json.Unmarshal(q.body, &sent) != nil || len(sent) == 0 {
		w.malformed()
		return
	}
	if no := b.apply(q.path, resource, sent); no != nil {
		w.say(no)
		return
	}
	if b.has(PatchNoContent) {
		w.send(http.StatusNoContent, nil)
		return
	}
	shown := maps.Clone(b.shown(q.path))
	delete(shown, "@odata.etag")
	w.send(http.StatusOK, shown)
}

// apply does what a PATCH asks for, all of it or nothing.
func (b *BMC) apply(at string, resource, sent Resource) *refusal {
	if h := b.hosts[at]; h != nil {
		return h.change(resource, sent)
	}
	for _, h := range b.hosts {
		if h.settings == at && h.pends() {
			return h.changePending(resource, sent)
		}
	}
	if at == b.door.account {
		return b.door.changeAccount(sent)
	}
	if m := b.media[at]; m != nil {
		return m.change(sent)
	}
	if property := unknown(resource, sent); property != "" {
		return notKnown(property)
	}
	merge(resource, sent)
	return nil
}

func (d *door) changeAccount(sent Resource) *refusal {
	password, ok := sent["Password"].(string)
	if !ok || len(sent) > 1 {
		return notWritable(strings.Join(slices.Sorted(maps.Keys(sent)), ", "))
	}
	if password == d.password {
		return badRequest("PropertyValueFormatError", "The password is the one that has to be changed.", "Password")
	}
	d.password, d.change = password, false
	return nil
}

func (h *host) change(sys, sent Resource) *refusal {
	for _, key := range slices.Sorted(maps.Keys(sent)) {
		if no := h.check(sys, key, sent[key]); no != nil {
			return no
		}
	}
	for key, value := range sent {
		switch {
		case key == "Boot":
			h.applyBoot(sys, value.(map[string]any))
		case key == "AssetTag":
			h.b.applyTag(sys, value.(string))
		default:
			merge(sys, Resource{key: value})
		}
	}
	return nil
}

// check says what is wrong with one property of a system.
func (h *host) check(sys Resource, key string, value any) *refusal {
	if h.b.has(BootInSettings) && key != "LocationIndicatorActive" && key != "IndicatorLED" {
		return notWritable(key)
	}
	if _, known := sys[key]; !known {
		return notKnown(key)
	}
	switch key {
	case "Boot":
		boot, ok := value.(map[string]any)
		if !ok {
			return notListed("Boot", "an object")
		}
		return h.checkBoot(sys, boot)
	case "AssetTag":
		return h.b.checkTag(value)
	case "LocationIndicatorActive", "IndicatorLED":
		return h.b.checkLight(key, value)
	}
	return notWritable(key)
}

func (r rules) checkTag(value any) *refusal {
	tag, ok := value.(string)
	switch {
	case r.has(TagReadOnly):
		return notWritable("AssetTag")
	case !ok || r.has(TagPadded) && len(tag) > 32:
		return badRequest("StringValueTooLong", "The string "+tag+" exceeds the length limit 32.", tag, "32")
	}
	return nil
}

func (r rules) checkLight(key string, value any) *refusal {
	if r.has(LightRefused) {
		return &refusal{http.StatusForbidden, "Base.1.8.InsufficientPrivilege", "There are insufficient privileges for the account.", nil}
	}
	_, isBool := value.(bool)
	led, _ := value.(string)
	if key == "LocationIndicatorActive" && !isBool || key == "IndicatorLED" && !slices.Contains([]string{"Lit", "Blinking", "Off"}, led) {
		return notListed("value", key)
	}
	return nil
}

func (r rules) applyTag(on Resource, tag string) {
	if r.has(TagIgnored) {
		return
	}
	if r.has(TagPadded) {
		tag += strings.Repeat(" ", 32-len(tag))
	}
	on["AssetTag"] = tag
}

// checkBoot is about where an override is written.
func (h *host) checkBoot(sys, boot Resource) *refusal {
	switch {
	case h.b.has(LicenceForBoot):
		return noLicence()
	case h.b.has(RefusesInPOST) && h.inPOST():
		return &refusal{http.StatusBadRequest, "iLO.2.14.UnableToModifyDuringSystemPOST", "Unable to modify the value or resource while the system is in POST.", nil}
	case h.b.has(BootInFutureState) && h.b.has(FutureStateUnnamed):
		return &refusal{http.StatusBadRequest, "Ami.1.0.OperationSupportedInFutureStateURI", "The operation is supported in the future state URI only.", nil}
	case h.b.has(BootInFutureState):
		return &refusal{http.StatusBadRequest, "Ami.1.0.OperationSupportedInFutureStateURI",
			"The operation is supported in the future state URI " + h.settings + " only.", []string{h.settings}}
	}
	return h.b.checkBoot(object(sys, "Boot"), boot)
}

// checkBoot is about the override itself.
func (r rules) checkBoot(have, boot Resource) *refusal {
	wanted, mode := boot["BootSourceOverrideMode"]
	switch {
	case mode && r.has(ModeUnchanged) && wanted == have["BootSourceOverrideMode"]:
		return badRequest("PropertyValueConflict", "The property BootSourceOverrideMode could not be written because its value conflicts with its present one.",
			"BootSourceOverrideMode", "BootSourceOverrideMode")
	case mode && r.has(ModeUnknown):
		return notKnown("BootSourceOverrideMode")
	case mode && r.has(ModeReadOnly):
		return notWritable("BootSourceOverrideMode")
	}
	if property := unknown(have, boot); property != "" {
		return notKnown(property)
	}
	if r.has(BootNeedsAll) {
		for _, key := range []string{"BootSourceOverrideEnabled", "BootSourceOverrideMode", "BootSourceOverrideTarget"} {
			if boot[key] == nil {
				return badRequest("PropertyMissing", "The property "+key+" is a required property and must be included in the request.", key)
			}
		}
	}
	enabled := []any{"Once", "Continuous", "Disabled"}
	if r.has(OnceOrDisabled) {
		enabled = []any{"Once", "Disabled"}
	}
	targets, _ := have["BootSourceOverrideTarget@Redfish.AllowableValues"].([]any)
	for key, allowed := range map[string][]any{"BootSourceOverrideEnabled": enabled, "BootSourceOverrideMode": {"UEFI", "Legacy"}, "BootSourceOverrideTarget": targets} {
		if value, sent := boot[key]; sent && len(allowed) > 0 && !slices.Contains(allowed, value) {
			text, _ := value.(string)
			return notListed(text, key)
		}
	}
	return nil
}

func (h *host) applyBoot(resource, boot Resource) {
	if h.b.has(OverrideIgnored) {
		return
	}
	have := object(resource, "Boot")
	if h.b.has(OverrideLate) {
		h.late, h.lateTill = clone(have).(Resource), h.b.Clock.Now().Add(3*time.Second)
	}
	merge(have, boot)
	if have["BootSourceOverrideEnabled"] == "Disabled" || have["BootSourceOverrideTarget"] == "None" {
		have["BootSourceOverrideEnabled"], have["BootSourceOverrideTarget"] = "Disabled", "None"
	}
	if _, sent := boot["BootSourceOverrideMode"]; !sent && h.b.has(ModeFallsBack) && have["BootSourceOverrideMode"] != nil {
		have["BootSourceOverrideMode"] = "Legacy"
	}
}

// changePending is a PATCH of the settings object.
func (h *host) changePending(pending, sent Resource) *refusal {
	if property := unknown(pending, sent); property != "" {
		return notKnown(property)
	}
	if boot := object(sent, "Boot"); boot != nil {
		switch {
		case h.b.has(LicenceForBoot):
			return noLicence()
		case h.b.has(RefusesInPOST) && h.inPOST():
			return &refusal{http.StatusBadRequest, "iLO.2.14.UnableToModifyDuringSystemPOST", "Unable to modify the value or resource while the system is in POST.", nil}
		}
		if no := h.b.checkBoot(object(pending, "Boot"), boot); no != nil {
			return no
		}
		h.applyBoot(pending, boot)
	}
	if tag, ok := sent["AssetTag"].(string); ok {
		h.b.applyTag(pending, tag)
		h.b.tree[h.path]["AssetTag"] = pending["AssetTag"] // it is shown at once
	}
	return nil
}
