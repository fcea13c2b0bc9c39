// Package bench holds `make bench-lab`: how long a machine of the rack takes from power-on to Active, beside
// the least that its kernel can take, and what memory bootd and nodeagent hold. It has benchmarks only.
package bench
