package redfishtest

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"net/http"
	"path"
	"strings"
	"time"
)

// read answers a GET.
func (b *BMC) read(w *reply, q *request) {
	if b.has(ForbiddenStorage) && strings.Contains(q.path, "Storage") {
		w.refuse(http.StatusForbidden, "SMC.1.0.OemLicenseNotPassed", "Not licensed to perform this request.")
		return
	}
	if b.has(ParentFirst) && strings.Count(q.path, "/") > 4 && !b.parents[b.parent(q.path)] {
		w.missing(q.path)
		return
	}
	resource := b.shown(q.path)
	if resource == nil {
		w.missing(q.path)
		return
	}
	b.parents[q.path] = true
	resource = maps.Clone(resource)
	delete(resource, "@odata.etag")
	tag := b.etag(q.path, resource)
	if b.has(GzipETags) && strings.Contains(q.Header.Get("Accept-Encoding"), "gzip") {
		tag = strings.TrimSuffix(tag, `"`) + `-gzip"`
	}
	if !b.has(ETagInBody) {
		w.Header().Set("ETag", tag)
	}
	if !b.has(ETagInHeader) {
		resource["@odata.etag"] = tag
	}
	w.send(http.StatusOK, resource)
}

// parent is the nearest resource above.
func (b *BMC) parent(at string) string {
	for at = path.Dir(at); b.tree[at] == nil && at != "/"; at = path.Dir(at) {
	}
	return at
}

// shown is a resource as it is now; nil where there is none.
func (b *BMC) shown(at string) Resource {
	if resource := b.door.resource(at); resource != nil {
		return resource
	}
	if b.tasks.has(at) {
		return b.tasks.resource(at, b.Clock.Now())
	}
	if h := b.hosts[at]; h != nil {
		h.refresh()
		if h.late != nil && b.Clock.Now().Before(h.lateTill) {
			old := maps.Clone(b.tree[at])
			old["Boot"] = h.late
			return old
		}
	}
	resource := b.tree[at]
	if strings.HasPrefix(str(resource, "@odata.type"), "#Manager.") && resource["DateTime"] != nil {
		resource["DateTime"] = b.wall().Format(time.RFC3339)
	}
	if m := b.media[at]; m != nil && b.Clock.Now().Before(m.insertedTill) {
		resource = maps.Clone(resource)
		resource["Inserted"] = true
	}
	if at == b.door.account {
		resource["PasswordChangeRequired"] = b.door.change
	}
	return resource
}

// etag is a resource's entity tag. It does not change with what a clock shows.
func (b *BMC) etag(at string, resource Resource) string {
	if b.has(EmptyETag) {
		return `""`
	}
	stable := maps.Clone(resource)
	delete(stable, "DateTime")
	delete(stable, "@odata.etag")
	data, err := json.Marshal(stable)
	if err != nil {
		panic(err) // a tree was read from JSON
	}
	sum := fnv.New32a()
	_, _ = sum.Write(data) // never fails
	tag := fmt.Sprintf(`"%08X"`, sum.Sum32()+uint32(b.salt[at]))
	if b.has(WeakETags) {
		return "W/" + tag
	}
	return tag
}

// refusesETag is the answer to a write for its precondition.
func (b *BMC) refusesETag(w *reply, q *request) bool {
	sent := q.Header.Get("If-Match")
	if sent == "" {
		if b.has(IfMatchRequired) {
			w.refuse(http.StatusPreconditionRequired, "Base.1.8.PreconditionRequired", "A precondition header or annotation is required to change this resource.")
		}
		return b.has(IfMatchRequired)
	}
	if b.matches(q.path, sent) {
		return false
	}
	w.refuse(http.StatusPreconditionFailed, "Base.1.8.PreconditionFailed", "The ETag supplied did not match the ETag required to change this resource.")
	return true
}

func (b *BMC) matches(at, sent string) bool {
	if b.has(IfMatchRefused) {
		return false
	}
	if b.has(ETagMoves) && !b.moved[at] {
		b.moved[at] = true
		b.salt[at]++
		return false
	}
	if sent == "*" {
		return true
	}
	resource := b.shown(at)
	if resource == nil {
		return true // that is reported in another way
	}
	if b.has(StrongCompare) && strings.HasPrefix(sent, "W/") {
		return false
	}
	return strings.TrimPrefix(sent, "W/") == strings.TrimPrefix(b.etag(at, resource), "W/")
}

// remove answers a DELETE: of sessions, and of what was made by a POST.
func (b *BMC) remove(w *reply, q *request) {
	switch {
	case b.door.sessions[q.path] != nil:
		delete(b.door.sessions, q.path)
	case b.tree[q.path] != nil && strings.Contains(q.path, "/Subscriptions/"):
		delete(b.tree, q.path)
		b.setMembers(path.Dir(q.path))
	default:
		w.missing(q.path)
		return
	}
	w.send(http.StatusNoContent, nil)
}

// setMembers lists what is below a collection.
func (b *BMC) setMembers(collection string) {
	list := []any{}
	for at := range b.tree {
		if path.Dir(at) == collection {
			list = append(list, reference(at))
		}
	}
	b.tree[collection]["Members"], b.tree[collection]["Members@odata.count"] = list, len(list)
}
