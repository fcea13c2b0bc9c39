package redfish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/hardware"
)

// write is a change of one resource. What a BMC refuses of it is put otherwise, by what the refusal says.
type write struct {
	path, etag string
	under      string         // the object that has the fields; empty for the resource itself
	fields     map[string]any // what is written
	has        map[string]any // what the resource shows of the same object: missing fields come from here
	// droppable reports whether the change still means the same without the field.
	droppable func(field string) bool
	// others are further values of a field that mean the same, the best first.
	others   map[string][]text
	method   string         // empty means PATCH; POST calls an action, or makes a member of a collection
	together []string       // of has: what is sent only together
	beside   map[string]any // sent beside the object that has the fields
	// secret is what is written, where it is one: BMCs repeat what they refuse.
	secret string
	// elsewhere are resources that take what this one refuses, the first one first.
	elsewhere []string
}

func (w *write) body() map[string]any {
	if w.under == "" {
		return w.fields
	}
	body := map[string]any{w.under: w.fields}
	maps.Copy(body, w.beside)
	return body
}

// remedy is what a refusal asks for.
type remedy int

const (
	freshETag remedy = iota
	addField
	dropField
	otherValue
	otherResource
)

// remedies lists what refusals ask for, by a part of the message's id or by its status. Sources: DMTF's Base registry
// (DSP8011), sushy, omni.
func remedies() []struct {
	id     string
	status int
	remedy remedy
} {
	return []struct {
		id     string
		status int
		remedy remedy
	}{
		{status: http.StatusPreconditionFailed, remedy: freshETag},
		{status: http.StatusPreconditionRequired, remedy: freshETag},
		{id: "PreconditionFailed", remedy: freshETag},
		{id: "PreconditionRequired", remedy: freshETag},
		{id: "OperationSupportedInFutureStateURI", remedy: otherResource}, // AMI
		{id: "PropertyMissing", remedy: addField},
		{id: "MissingReqProperties", remedy: addField},
		{id: "ActionParameterMissing", remedy: addField},
		{id: "PropertyUnknown", remedy: dropField},
		{id: "ActionParameterUnknown", remedy: dropField},
		{id: "ActionParameterNotSupported", remedy: dropField},
		{id: "PropertyNotWritable", remedy: dropField},
		{id: "PropertyNotUpdated", remedy: dropField},
		{id: "PropertyNotSupported", remedy: dropField}, // Supermicro
		{id: "UnrecognizedProperty", remedy: dropField},
		{id: "PropertyValueNotInList", remedy: otherValue},
		{id: "PropertyValueConflict", remedy: otherValue},
		{id: "PropertyValueError", remedy: otherValue},
		{id: "PropertyValueIncorrect", remedy: otherValue},
		{id: "PropertyValueFormatError", remedy: otherValue},
		{id: "@Redfish.Settings", remedy: otherResource},
		{status: http.StatusMethodNotAllowed, remedy: otherResource},
	}
}

// patch writes until the BMC accepts it or has no further answer. Each answer is tried once. When nothing helped, the error
// quotes every refusal.
func (r *driver) patch(ctx context.Context, w *write) error {
	tried, sent := map[string]bool{}, map[string]bool{}
	var before []string
	for {
		sent[w.form()] = true
		_, err := r.send(ctx, cmp.Or(w.method, http.MethodPatch), w.path, w.etag, w.body())
		var no *refusal
		if errors.Is(err, hardware.ErrUnreachable) && w.method == "" && !tried["lost"] {
			// The BMC broke the connection, and may have taken the write all the same.
			tried["lost"] = true
			if taken, lookErr := r.took(ctx, w); taken || lookErr != nil {
				return lookErr
			}
			continue
		}
		if !errors.As(err, &no) {
			return err
		}
		amended, reread := w.amend(no, tried)
		if reread {
			if err := r.reread(ctx, w); err != nil {
				return refusedBefore(err, append(before, no.Error()))
			}
		}
		if !amended || !reread && sent[w.form()] { // two refusals may ask for opposite things
			return refusedBefore(no, before)
		}
		r.log.Info("BMC refuses the write as it was, putting it otherwise", "refusal", w.withheld(no).Error())
		before = append(before, no.Error())
	}
}

// withheld is an error without the secret.
func (w *write) withheld(err error) error {
	if err == nil || w.secret == "" {
		return err
	}
	return redacted{err, w.secret}
}

// form tells writes apart.
func (w *write) form() string { return fmt.Sprint(w.path, w.etag, w.body()) }

// took reports whether the resource shows what was written.
func (r *driver) took(ctx context.Context, w *write) (bool, error) {
	var resource map[string]any
	if _, err := r.get(ctx, w.path, &resource); err != nil {
		return false, err
	}
	if w.under != "" {
		resource, _ = resource[w.under].(map[string]any)
	}
	for field, value := range w.fields {
		if fmt.Sprint(resource[field]) != fmt.Sprint(value) {
			return false, nil
		}
	}
	return true, nil
}

func refusedBefore(err error, before []string) error {
	if err == nil || len(before) == 0 {
		return err
	}
	return fmt.Errorf("%w (put otherwise after: %s)", err, strings.Join(before, "; "))
}

// reread gets the etag that the next write needs. A BMC that wants one and shows none takes any.
func (r *driver) reread(ctx context.Context, w *write) error {
	var resource map[string]any
	etag, err := r.get(ctx, w.path, &resource)
	if err != nil {
		return err
	}
	if w.etag = etag; strings.Trim(etag, `W/"`) == "" {
		w.etag = "*"
	}
	return nil
}

// amend changes the write by what the refusal says; reread asks for the resource's present etag. It is false when nothing
// is left to try.
func (w *write) amend(no *refusal, tried map[string]bool) (amended, reread bool) {
	once := func(key string) bool {
		seen := tried[key]
		tried[key] = true
		return !seen
	}
	for _, rule := range remedies() {
		if rule.status != 0 && rule.status != no.status || rule.id != "" && !no.says(rule.id) {
			continue
		}
		field := w.fieldOf(no, rule.id)
		switch rule.remedy {
		case freshETag:
			if w.method != http.MethodPost && once("etag of "+w.path) {
				return true, true
			}
		case addField:
			if value, ok := w.has[field]; ok && w.fields[field] == nil && once("add "+field) {
				w.fields[field] = value
				w.addTogether(field)
				return true, false
			}
		case dropField:
			if w.drop(field) && once("drop "+field) {
				return true, false
			}
			if w.move(no) {
				return true, true
			}
		case otherValue:
			if w.another(field) || w.drop(field) {
				return true, false
			}
		case otherResource:
			if w.move(no) {
				return true, true
			}
		}
	}
	return false, false
}

// drop leaves a field out that the change does not need.
func (w *write) drop(field string) bool {
	if w.fields[field] == nil || w.droppable == nil || !w.droppable(field) {
		return false
	}
	delete(w.fields, field)
	return true
}

// addTogether adds what is sent only together with a field.
func (w *write) addTogether(field string) {
	if !slices.Contains(w.together, field) {
		return
	}
	for _, other := range w.together {
		w.fields[other] = w.has[other]
	}
}

// another takes the next value that means the same.
func (w *write) another(field string) bool {
	if w.fields[field] == nil || len(w.others[field]) == 0 {
		return false
	}
	w.fields[field], w.others[field] = w.others[field][0], w.others[field][1:]
	return true
}

// move goes to the resource that the refusal names, or to the next that is known to take such writes.
func (w *write) move(no *refusal) bool {
	for _, at := range append(no.paths(), w.elsewhere...) {
		i := slices.Index(w.elsewhere, at)
		if at == w.path || i < 0 && !strings.HasPrefix(at, w.path+"/") {
			continue // of what a message names, only what lies below counts
		}
		if i >= 0 {
			w.elsewhere = slices.Delete(w.elsewhere, i, i+1)
		}
		w.path, w.elsewhere = at, slices.DeleteFunc(w.elsewhere, func(s string) bool { return s == at })
		return true
	}
	return false
}

// fieldOf finds the field that a refusal is about: in its arguments, in its related properties, or in its words.
func (w *write) fieldOf(no *refusal, id string) string {
	known := map[string]bool{}
	for _, fields := range []map[string]any{w.fields, w.has} {
		for field := range fields {
			known[field] = true
		}
	}
	for _, m := range no.messages {
		if !strings.Contains(string(m.ID+m.Text), id) {
			continue
		}
		for _, named := range slices.Concat(m.Args, m.Related) {
			field := string(named)[strings.LastIndexAny(string(named), "/.#")+1:]
			if known[field] {
				return field
			}
		}
		// The longest name first: one may be the beginning of another.
		names := slices.Collect(maps.Keys(known))
		slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) })
		for _, field := range names {
			if strings.Contains(string(m.Text), field) {
				return field
			}
		}
	}
	return ""
}

var redfishPath = regexp.MustCompile(`/redfish/v1/[A-Za-z0-9_./:-]+`)

// paths are the resources that a refusal names.
func (r *refusal) paths() (paths []string) {
	for _, m := range r.messages {
		for _, words := range slices.Concat(m.Args, []text{m.Text, m.Resolution}) {
			for _, at := range redfishPath.FindAllString(string(words), -1) {
				paths = append(paths, strings.TrimRight(at, "/."))
			}
		}
	}
	return paths
}
