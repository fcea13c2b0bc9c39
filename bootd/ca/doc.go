// Package ca holds the Site's keys: its certificate authority and the
// certificates that it signs for bootd, hosts and people; the keys that seal
// Secrets; and the tokens of BootAttempts.
//
// The authority and bootd's own certificate are valid from 1970 to 9999,
// because the clock of a machine that boots for the first time may be decades
// off. The certificates of hosts and people are short-lived and checked by
// bootd's clock.
package ca
