// Package backup owns the backup file: what is in it, how it is sealed, and how
// it is checked. It knows the pieces by name only; what goes into them, and
// where they are restored to, is the caller's.
//
// A backup is an age file (https://age-encryption.org/v1), encrypted to a
// passphrase (scrypt) or to age recipients, so that age(1) opens it too. Inside
// is a tar archive: header.json first, which has the format's version; then the
// pieces; last digests.json, with the size and SHA-256 of each piece before it.
// An archive without that last piece is cut short, whatever its tail looks like.
package backup
