package ca

import (
	"fmt"
	"os"
)

// private returns an error for a file that others than its owner can open.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s has mode %04o and may be known to others: replace it if it was read, then chmod 0600 it", path, mode)
	}
	return nil
}
