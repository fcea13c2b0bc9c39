package hardware

import (
	"errors"
	"fmt"
)

// Errors that callers branch on. Each comes wrapped with what was being done, on which BMC, and what to do.
var (
	ErrUnreachable  = errors.New("BMC does not answer")
	ErrUnauthorized = errors.New("BMC refuses the credentials")
	ErrUnsupported  = errors.New("BMC does not offer it")
	// ErrForbidden: the account may not do this one thing; its login is good.
	ErrForbidden = errors.New("BMC does not let this account do it")
	// ErrPasswordChange: the BMC does nothing for this account until a person has changed its password.
	ErrPasswordChange = errors.New("BMC wants the password changed first")
	// ErrCrowded: the BMC has no login to spare for what can do without.
	ErrCrowded = errors.New("BMC has no login to spare")
	// ErrInUse: another client has the console, of which the BMC has one.
	ErrInUse = errors.New("another client has the console")
	// ErrLost: the connection was cut off, which the BMC may not know.
	ErrLost = errors.New("the connection to the BMC was lost")
	// ErrNoOverride: the BMC has no boot override at all, so that the firmware's own boot order counts. It is ErrUnsupported.
	ErrNoOverride = errors.New("the system has no boot override: is a licence missing?")
	// ErrModeUntold: the BMC neither tells nor takes the boot mode that was asked for. It is ErrUnsupported.
	ErrModeUntold = errors.New("the BMC tells no boot mode")
	// ErrNotSeen: a command was accepted, or may have been, and nothing shows that it was carried out. It is not to be sent
	// again as if it had not been.
	ErrNotSeen = errors.New("BMC accepted it, but it was not seen to happen")
	// ErrUnfinished: the BMC's task for it has not ended, so it may still be carried out. It comes with ErrNotSeen.
	ErrUnfinished = errors.New("its task has not ended")
)

// CertificateMismatchError says that a BMC presented another certificate than pinned. Nothing was sent to it.
type CertificateMismatchError struct {
	Address string
	Want    string
	Got     string
}

func (e *CertificateMismatchError) Error() string {
	return fmt.Sprintf("%s presents certificate %s, pinned is %s: if the BMC's certificate was replaced on purpose, pin the new one; "+
		"otherwise someone is in between", e.Address, e.Got, e.Want)
}

// HostKeyMismatchError says that a BMC's SSH server presented another host key than pinned. Nothing was sent to it.
type HostKeyMismatchError struct {
	Address string
	Want    string
	Got     string
}

func (e *HostKeyMismatchError) Error() string {
	return fmt.Sprintf("the SSH server of %s presents host key %s, pinned is %s: if its host key was replaced on purpose, pin the new one; "+
		"otherwise someone is in between", e.Address, e.Got, e.Want)
}

// UntrustedError says that a BMC presented a certificate or a host key that no one has trusted yet, where a person has to.
// Nothing was sent to it.
type UntrustedError struct {
	Address string
	What    string // certificate or SSH host key
	Got     string
}

func (e *UntrustedError) Error() string {
	return fmt.Sprintf("%s presents %s %s, which no one has trusted yet, and spec.trust.bmc of the Site is person: no password is sent to it",
		e.Address, e.What, e.Got)
}

// Distrusted reports whether a BMC was refused for what it presented, before anything was sent to it.
func Distrusted(err error) bool {
	var certificate *CertificateMismatchError
	var key *HostKeyMismatchError
	var untrusted *UntrustedError
	return errors.As(err, &certificate) || errors.As(err, &key) || errors.As(err, &untrusted)
}

// UnsupportedError says that a BMC cannot do one thing: the verb that it was asked for. It is ErrUnsupported.
type UnsupportedError struct {
	Verb string
	Err  error // why, in the BMC's words where it has any
}

func (e *UnsupportedError) Error() string        { return e.Err.Error() }
func (e *UnsupportedError) Unwrap() error        { return e.Err }
func (e *UnsupportedError) Is(target error) bool { return target == ErrUnsupported }
