// Package admission decides whether an object may be written or deleted: it judges an object, which is valid by
// itself, against all stored ones. It has no side effects: the server calls it before each write and before each
// deletion.
//
// No rule iterates over all objects of a kind. A World keeps an index for each lookup of a rule, so the cost of a
// verdict depends on the size of the object only.
package admission
