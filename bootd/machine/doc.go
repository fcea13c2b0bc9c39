// Package machine owns the life of a Machine: the controller that inspects it,
// powers it, opens BootAttempts and follows each to Active or Failed, and the
// rules by which an attempt advances.
//
// The controller is level-triggered: each pass looks at the Machine as it
// stands, takes one step, and writes it down before the next. Killing bootd at
// any instant loses nothing: the attempt, its stage and its tokens (which are
// derived, not stored) are found again.
//
// A step is decided before it is taken. facts gathers what matters; decide is a
// pure function of that and one time, and returns one action; act takes it. Where
// it is to ask the BMC, a session does, and outcome, which is pure as well, says
// what follows from the answer. write puts an action into the Machine as the store
// has it by then, unless it no longer applies.
package machine
