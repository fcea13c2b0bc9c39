// Package backup owns the backup file: its contents, encryption and checks. It knows the pieces by name only; the
// caller decides what goes into them, and where they are restored to.
//
// A backup is an age file (https://age-encryption.org/v1), encrypted to a
// passphrase (scrypt) or to age recipients, so that age(1) opens it too. Inside is a tar archive: first
// header.json, with the format's version; then the pieces; last digests.json, with the size and SHA-256 of each
// piece before it. An archive without that last piece is truncated, whatever its tail looks like.
package backup
