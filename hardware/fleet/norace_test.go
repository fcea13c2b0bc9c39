//go:build !race

package fleet

const silentBMCs = 1000
