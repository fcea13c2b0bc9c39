// Package hardwarebench holds `make bench-hardware`: a thousand simulated BMCs,
// and a hundred that say nothing, behind one bootd. It has a benchmark only.
package hardwarebench
