// Package admission judges what is to be written: an object that is valid by
// itself, by all the others that are stored. It decides and does nothing else:
// the server asks it before each write and before each deletion.
package admission
