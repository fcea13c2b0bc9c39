package redfishtest

import (
	"encoding/json"
	"net/http"
	"time"
)

// media is one drive for virtual media.
type media struct {
	rules
	resource     Resource
	insertedTill time.Time // Inserted is reported as true until then
}

// insert answers VirtualMedia.InsertMedia.
func (m *media) insert(w *reply, q *request) {
	var sent Resource
	if json.Unmarshal(q.body, &sent) != nil {
		w.malformed()
		return
	}
	if no := m.refusesInsert(sent); no != nil {
		w.say(no)
		return
	}
	m.hold(str(sent, "Image"))
	w.send(http.StatusNoContent, nil)
}

func (m *media) refusesInsert(sent Resource) *refusal {
	missing := func(parameter string) *refusal {
		return badRequest("ActionParameterMissing", "The action VirtualMedia.InsertMedia requires the parameter "+parameter+" to be present in the request body.",
			"VirtualMedia.InsertMedia", parameter)
	}
	_, inserted := sent["Inserted"]
	_, protected := sent["WriteProtected"]
	switch {
	case m.has(LicenceForMedia):
		return noLicence()
	case str(sent, "Image") == "":
		return missing("Image")
	case m.has(InsertImageOnly) && (inserted || protected):
		return badRequest("ActionParameterUnknown", "The action VirtualMedia.InsertMedia was submitted with the invalid parameter Inserted.", "VirtualMedia.InsertMedia", "Inserted")
	case m.has(InsertNeedsProtocol) && str(sent, "TransferProtocolType") == "":
		return missing("TransferProtocolType")
	case m.has(InsertNeedsStream) && str(sent, "TransferMethod") != "Stream":
		return missing("TransferMethod")
	case m.has(InsertNeedsStream) && (str(sent, "UserName") == "" || str(sent, "Password") == ""):
		return missing("UserName")
	case m.has(InsertNeedsEject) && m.resource["Inserted"] == true:
		return &refusal{http.StatusInternalServerError, "IDRAC.2.8.VRM0012", "The virtual media is already attached.", nil}
	}
	return nil
}

// eject answers VirtualMedia.EjectMedia.
func (m *media) eject(w *reply, q *request, now time.Time) {
	if m.has(EjectNeedsBody) && len(q.body) == 0 {
		w.malformed()
		return
	}
	m.hold("")
	if m.has(EjectShownLate) {
		m.insertedTill = now.Add(5 * time.Second)
	}
	w.send(http.StatusNoContent, nil)
}

// change is a PATCH.
func (m *media) change(sent Resource) *refusal {
	if !m.has(MediaByPatch) {
		return notWritable("Image")
	}
	if m.has(LicenceForMedia) {
		return noLicence()
	}
	if property := unknown(m.resource, sent); property != "" {
		return notKnown(property)
	}
	image, told := sent["Image"].(string)
	inserted, _ := sent["Inserted"].(bool)
	if told && image != "" && !inserted {
		return badRequest("PropertyMissing", "The property Inserted is a required property and must be included in the request.", "Inserted")
	}
	m.hold(image)
	return nil
}

// hold puts an image in, or with none takes out what is there.
func (m *media) hold(image string) {
	m.resource["Image"], m.resource["Inserted"], m.resource["ConnectedVia"] = image, image != "", "NotConnected"
	if image != "" {
		m.resource["ConnectedVia"] = "URI"
	}
	m.insertedTill = time.Time{}
}
