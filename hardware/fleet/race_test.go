//go:build race

package fleet

// silentBMCs is smaller here: the race detector of Go 1.26 ends some programs of thousands of goroutines with "CHECK
// failed: tsan_rtl.cpp:346".
const silentBMCs = 300
