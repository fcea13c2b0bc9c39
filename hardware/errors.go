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
