package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// confirm asks a question on standard error and reads the answer from standard input. All but yes is an error.
func (a *app) confirm(question string) error {
	if _, err := fmt.Fprintf(a.err, "%s [y/N] ", question); err != nil {
		return err
	}
	line, err := bufio.NewReader(a.In).ReadString('\n')
	if err != nil && line == "" {
		a.note("")
		if errors.Is(err, io.EOF) {
			return usagef("there is no one to ask: add --yes")
		}
		return fmt.Errorf("read the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return errors.New("nothing was done")
}
