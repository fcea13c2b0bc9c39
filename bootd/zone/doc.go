// Package zone owns what bootd knows of a Zone's BGP: it chooses the reflectors
// and replaces them make-before-break, says beforehand which sessions a change
// would drop, tests prefixes against the policies that hosts are given, and puts
// together what hosts report of their sessions. The parts themselves are
// compiled by package hostspec.
package zone
