package backup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"
)

// Recipient is who a backup is encrypted to, Identity who opens it.
type (
	Recipient = age.Recipient
	Identity  = age.Identity
)

// minPassphrase is the least that a passphrase must have: whoever has the file
// can try as many as they like, and it holds the Site's CA.
const minPassphrase = 12

// ToPassphrase encrypts to a passphrase, by scrypt with age's work factor: one
// to two seconds for each try.
func ToPassphrase(passphrase string) (age.Recipient, error) {
	if len(passphrase) < minPassphrase {
		return nil, fmt.Errorf("the passphrase has %d characters: use %d or more, for the file holds every key of the Site", len(passphrase), minPassphrase)
	}
	return age.NewScryptRecipient(passphrase)
}

// ToRecipients reads age recipients, one to a string: age1….
func ToRecipients(list []string) ([]age.Recipient, error) {
	var all []age.Recipient
	for _, text := range list {
		r, err := age.ParseX25519Recipient(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("invalid recipient %.80q: want age1…, as age-keygen prints it: %w", text, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// FromPassphrase opens what is encrypted to a passphrase.
func FromPassphrase(passphrase string) (age.Identity, error) {
	if passphrase == "" {
		return nil, errors.New("the passphrase is empty")
	}
	return age.NewScryptIdentity(passphrase)
}

// FromIdentities reads a file written by age-keygen(1).
func FromIdentities(file []byte) ([]age.Identity, error) {
	ids, err := age.ParseIdentities(bytes.NewReader(file))
	if err != nil {
		return nil, fmt.Errorf("invalid identity file: want AGE-SECRET-KEY-1… on a line of its own, as age-keygen writes it: %w", err)
	}
	return ids, nil
}

// Encrypt returns a writer whose Close ends the file.
func Encrypt(w io.Writer, to ...age.Recipient) (io.WriteCloser, error) {
	sealed, err := age.Encrypt(w, to...)
	if err != nil {
		return nil, fmt.Errorf("encrypt the backup: %w", err)
	}
	return sealed, nil
}

// ErrWrongKey says that the passphrase or identity does not open the file.
var ErrWrongKey = errors.New("the backup cannot be opened")

// Decrypt reads what Encrypt wrote.
func Decrypt(r io.Reader, with ...age.Identity) (io.Reader, error) {
	file := bufio.NewReader(r)
	begin, _ := file.Peek(512) // fewer bytes of a short file, which age then refuses
	plain, err := age.Decrypt(file, with...)
	var mismatch *age.NoIdentityMatchError
	switch {
	case err == nil:
		return plain, nil
	case errors.As(err, &mismatch):
		return nil, fmt.Errorf("%w: %s", ErrWrongKey, why(begin, with))
	}
	return nil, damaged("it is not an age file: %s", err)
}

// why says what the file needs to be opened.
func why(begin []byte, with []age.Identity) string {
	byPassphrase := slices.ContainsFunc(with, func(id age.Identity) bool { _, ok := id.(*age.ScryptIdentity); return ok })
	switch toPassphrase := bytes.Contains(begin, []byte("\n-> scrypt ")); {
	case toPassphrase && byPassphrase:
		return "the passphrase is wrong"
	case toPassphrase:
		return "it is encrypted to a passphrase, not to an identity: give the passphrase"
	case byPassphrase:
		return "it is encrypted to an age recipient, not to a passphrase: give the identity file"
	}
	return "it is encrypted to another identity"
}
