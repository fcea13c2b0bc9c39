// Package ca owns the Site's trust: its certificate authority and what that
// signs for bootd, hosts and people; the keys that seal Secrets; and the tokens
// that a BootAttempt is given.
//
// The authority and bootd's own certificate are valid from 1970 to 9999,
// because the clock of a machine that boots for the first time may be decades
// off. What hosts and people get is short-lived and judged by bootd's clock.
package ca
