// Package zone owns the BGP of Zones: it chooses the reflectors and replaces them make-before-break, predicts
// which sessions a change would drop, tests prefixes against the policies that hosts receive, and combines the
// hosts' reports about their sessions. The parts themselves are compiled by package hostspec.
package zone
