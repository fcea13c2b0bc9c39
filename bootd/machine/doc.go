// Package machine owns the life of a Machine: the controller that inspects it,
// powers it, opens BootAttempts and follows each to Active or Failed, and the
// rules by which an attempt advances.
//
// The controller is level-triggered: each pass looks at the Machine as it
// stands, takes one step, and writes it down before the next. Killing bootd at
// any instant loses nothing: the attempt, its stage and its tokens (which are
// derived, not stored) are found again.
package machine
