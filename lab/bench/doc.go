// Package bench holds `make bench-lab`: how long a machine of the rack takes
// from power-on to Active, compared with the minimum for its kernel, and how
// much memory bootd and nodeagent use. It has benchmarks only.
package bench
