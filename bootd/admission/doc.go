// Package admission judges what is to be written: an object that is valid by
// itself, by all the others that are stored. It decides and does nothing else:
// the server asks it before each write and before each deletion.
//
// No rule looks at all objects of a kind. A World keeps an index for each
// question that a rule asks, so a verdict costs as much as the object is large.
package admission
