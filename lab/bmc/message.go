package bmc

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/http"
)

// message is one entry of ExtendedInfo (Message schema); ID names a message of a registry.
type message struct {
	ID         string   `json:"MessageId"`
	Text       string   `json:"Message"`
	Args       []string `json:"MessageArgs,omitempty"`
	Severity   string   `json:"MessageSeverity"`
	Resolution string   `json:"Resolution,omitempty"`
}

func malformedJSON() message {
	return message{ID: "Base.1.16.MalformedJSON", Severity: "Critical",
		Text:       "The request body submitted was malformed JSON and could not be parsed by the receiving service.",
		Resolution: "Ensure that the request body is valid JSON and resubmit the request."}
}

func missing(path string) message {
	return message{ID: "Base.1.16.ResourceMissingAtURI", Severity: "Critical", Args: []string{path},
		Text:       fmt.Sprintf("The resource at the URI '%s' was not found.", path),
		Resolution: "Place a valid resource at the URI or correct the URI and resubmit the request."}
}

func unknownProperty(name string) *message {
	return &message{ID: "Base.1.16.PropertyUnknown", Severity: "Warning", Args: []string{name},
		Text:       fmt.Sprintf("The property '%s' is not in the list of valid properties for the resource.", name),
		Resolution: "Remove the unknown property from the request body and resubmit the request."}
}

func missingParameter(name string) *message {
	return &message{ID: "Base.1.16.ActionParameterMissing", Severity: "Critical", Args: []string{"InsertMedia", name},
		Text:       fmt.Sprintf("The action InsertMedia requires the parameter %s to be present in the request body.", name),
		Resolution: "Supply the action with the required parameter in the request body when the request is resubmitted."}
}

func notWritable(name string) *message {
	return &message{ID: "Base.1.16.PropertyNotWritable", Severity: "Warning", Args: []string{name},
		Text:       fmt.Sprintf("The property '%s' is a read only property and cannot be assigned a value.", name),
		Resolution: "Remove the property from the request body and resubmit the request."}
}

func badValue(name string, value any) *message {
	return &message{ID: "Base.1.16.PropertyValueNotInList", Severity: "Warning", Args: []string{fmt.Sprint(value), name},
		Text:       fmt.Sprintf("The value '%v' for the property '%s' is not in the list of acceptable values.", value, name),
		Resolution: "Choose a value from the enumeration list that the implementation can support and resubmit the request."}
}

func wrongState(text string) message {
	return message{ID: "RackweftLab.1.0.InvalidOperationForSystemState", Severity: "Warning", Text: text,
		Resolution: "Read PowerState, then choose an action that fits it."}
}

func unlicensed() message {
	return message{ID: "SMC.1.0.OemLicenseNotPassed", Severity: "Warning",
		Text:       "Not licensed to perform this request.",
		Resolution: "Please activate the required license."}
}

func passwordChange() message {
	return message{ID: "Base.1.16.PasswordChangeRequired", Severity: "Critical", Args: []string{accountPath},
		Text:       "The password provided for this account must be changed before access is granted.  PATCH the Password property for this account located at the target URI '" + accountPath + "' to complete this process.",
		Resolution: "Change the password for this account using a PATCH to the Password property at the URI provided."}
}

func internal(err error) message {
	return message{ID: "Base.1.16.InternalError", Severity: "Critical",
		Text:       "The request failed due to an internal service error: " + err.Error(),
		Resolution: "Resubmit the request. If the problem persists, consider resetting the service."}
}

// fail answers with a Redfish error (DSP0266 §8.6).
func fail(w http.ResponseWriter, status int, m message) {
	reply(w, status, resource{"error": map[string]any{
		"code": m.ID, "message": m.Text, "@Message.ExtendedInfo": []message{m},
	}})
}

// reply writes a resource with its ETag.
func reply(w http.ResponseWriter, status int, body resource) {
	encoded, tag, err := encode(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json;odata.metadata=minimal;charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if _, is := body["@odata.id"]; is {
		w.Header().Set("ETag", tag)
	}
	w.WriteHeader(status)
	_, _ = w.Write(encoded) // the client may be gone
}

// encode renders a resource with its "@odata.etag". The tag is weak, as on HPE
// and Dell, which exposes clients that compare it literally.
func encode(body resource) (encoded []byte, tag string, err error) {
	plain, err := json.Marshal(body)
	if err != nil {
		return nil, "", err
	}
	sum := fnv.New32a()
	_, _ = sum.Write(plain) // never fails
	tag = fmt.Sprintf(`W/"%08X"`, sum.Sum32())
	if _, is := body["@odata.id"]; !is {
		return plain, tag, nil
	}
	tagged := resource{"@odata.etag": tag}
	for name, value := range body {
		tagged[name] = value
	}
	encoded, err = json.Marshal(tagged)
	return encoded, tag, err
}
