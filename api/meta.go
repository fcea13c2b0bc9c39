package api

import (
	"slices"
	"time"
)

// TypeMeta names an object's kind.
type TypeMeta struct {
	APIVersion string `json:"apiVersion" enum:"rackweft/v1alpha1" doc:"Always rackweft/v1alpha1."`
	Kind       string `json:"kind" doc:"The object's kind."`
}

// Metadata is common to all objects. The server sets all fields but Name,
// Labels, Annotations and Finalizers.
type Metadata struct {
	Name        string            `json:"name" doc:"RFC 1123 label, unique within the kind."`
	UID         string            `json:"uid,omitzero" doc:"Set at creation; two objects of one name are two uids."`
	Labels      map[string]string `json:"labels,omitempty" doc:"Text by key, for selectors."`
	Annotations map[string]string `json:"annotations,omitempty" doc:"Free text by key, for people and programs."`
	// Generation counts changes of spec.
	Generation int64 `json:"generation,omitzero" doc:"Counts changes of spec."`
	// ResourceVersion is the store revision of the last write. A write with a
	// ResourceVersion succeeds only if that is still current.
	ResourceVersion   string     `json:"resourceVersion,omitzero" doc:"Store revision of the last write; a write that carries one is refused with 409 when it is no longer current."`
	CreationTimestamp time.Time  `json:"creationTimestamp,omitzero" doc:"When the object was created."`
	DeletionTimestamp *time.Time `json:"deletionTimestamp,omitempty" doc:"When its deletion was asked for; it goes with the last finalizer."`
	Finalizers        []string   `json:"finalizers,omitempty" doc:"Who still has to clean up before the object goes."`
}

// Object is an object of any kind. Every pointer to a kind implements it.
type Object interface {
	// Type returns the object's own TypeMeta, to read or set.
	Type() *TypeMeta
	// Meta returns the object's own Metadata, to read or set.
	Meta() *Metadata
	// SetDefaults sets the fields whose default does not depend on anything
	// outside the object.
	SetDefaults()
	// Validate reports every field that is invalid by itself; the server checks
	// what depends on other objects.
	Validate() FieldErrors
}

// Base is embedded in every kind.
type Base struct {
	TypeMeta
	Metadata Metadata `json:"metadata" doc:"Name, labels and what the server keeps of every object."`
}

// Type implements Object.
func (b *Base) Type() *TypeMeta { return &b.TypeMeta }

// Meta implements Object.
func (b *Base) Meta() *Metadata { return &b.Metadata }

// ConditionStatus is True, False or Unknown.
type ConditionStatus string

// The three values of a condition.
const (
	True    ConditionStatus = "True"
	False   ConditionStatus = "False"
	Unknown ConditionStatus = "Unknown"
)

// CondReady is the condition that an object of any kind matches its spec.
const CondReady = "Ready"

// Condition is one observed fact of an object.
type Condition struct {
	Type    string          `json:"type" doc:"Name of the fact; unique within the object."`
	Status  ConditionStatus `json:"status" enum:"True,False,Unknown" doc:"Whether the fact holds."`
	Reason  string          `json:"reason,omitzero" doc:"One CamelCase word for programs."`
	Message string          `json:"message,omitzero" doc:"A sentence for people: what, where, what to do."`
	Time    time.Time       `json:"time,omitzero" doc:"When status last changed."`
}

// Conditions is a set by type.
type Conditions []Condition

// Get returns the condition of that type, or nil.
func (c Conditions) Get(typ string) *Condition {
	i := slices.IndexFunc(c, func(x Condition) bool { return x.Type == typ })
	if i < 0 {
		return nil
	}
	return &c[i]
}

// Is reports whether the condition of that type is True.
func (c Conditions) Is(typ string) bool {
	x := c.Get(typ)
	return x != nil && x.Status == True
}

// Set adds or changes a condition; its time changes only with its status. It
// reports whether anything but the time changed.
func (c *Conditions) Set(now time.Time, typ string, status ConditionStatus, reason, message string) bool {
	old := c.Get(typ)
	if old == nil {
		*c = append(*c, Condition{Type: typ, Status: status, Reason: reason, Message: message, Time: now.UTC()})
		return true
	}
	if old.Status == status && old.Reason == reason && old.Message == message {
		return false
	}
	if old.Status != status {
		old.Time = now.UTC()
	}
	old.Status, old.Reason, old.Message = status, reason, message
	return true
}

// Remove drops the condition of that type.
func (c *Conditions) Remove(typ string) {
	*c = slices.DeleteFunc(*c, func(x Condition) bool { return x.Type == typ })
}
