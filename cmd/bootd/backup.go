package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/rackweft/rackweft/bootd"
	"github.com/rackweft/rackweft/bootd/backup"
	"github.com/rackweft/rackweft/internal/exit"
)

// places holds the flags that select the bootd a command works on.
type places struct{ config, state, run string }

func (p *places) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&p.config, "config", defaultConfig, "configuration file of bootd; need not exist")
	f.StringVar(&p.state, "state-dir", "/var/lib/rackweft", "bootd's state directory")
	f.StringVar(&p.run, "run-dir", "/run/rackweft", "directory of the API socket")
}

// load reads the configuration and creates the command's logger.
func (p *places) load(c *cobra.Command) (bootd.Config, *slog.Logger, error) {
	conf, err := bootd.LoadConfig(p.config, c.Flags().Changed("config"))
	if err != nil {
		return conf, nil, exit.Fault(err)
	}
	conf.StateDir, conf.RunDir, conf.Version = p.state, p.run, version
	log, err := logger(quieter(conf.LogLevel))
	if err != nil {
		return conf, nil, exit.Fault(err)
	}
	return conf, log, nil
}

func backupCommand() *cobra.Command {
	var at places
	var recipients []string
	var passphraseFile string
	var blobs bool
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Back up all state of bootd, while it runs",
		Long: "Writes the store, the seal key, the Site's CA and, with --blobs, the files of Images into one\n" +
			"file, encrypted to a passphrase or to age recipients. bootd may run or be stopped. age(1) can\n" +
			"decrypt the file, too: keep the file and its key apart from each other and from this machine.",
		Example: "  bootd backup /mnt/backup/site.age --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\n" +
			"  bootd backup site.age --blobs --passphrase-file /root/passphrase",
		Args: oneFile("bootd backup FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, log, err := at.load(cmd)
			if err != nil {
				return err
			}
			to, err := encryptTo(recipients, passphraseFile)
			if err != nil {
				return exit.Fault(err)
			}
			report, err := bootd.Backup(cmd.Context(), bootd.BackupOptions{Config: conf, File: args[0], To: to, Blobs: blobs}, log)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), report.Text(args[0]))
			return err
		},
	}
	at.flags(c)
	f := c.Flags()
	f.StringSliceVar(&recipients, "recipient", nil, "age recipient to encrypt to, age1… (repeatable)")
	f.StringVar(&passphraseFile, "passphrase-file", "", "file whose first line is the passphrase; - for standard input (default: ask on the terminal)")
	f.BoolVar(&blobs, "blobs", false, "include the files of Images, which are large")
	return c
}

func restoreCommand() *cobra.Command {
	var at places
	var identity, passphraseFile string
	var replace, check, withoutStore bool
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Restore the state of bootd from a backup",
		Long: "Checks the whole backup, then restores it into the state directory, which must be empty. An\n" +
			"external etcd must be empty, too: the store is restored into it. When bootd is started again, it\n" +
			"changes nothing until it knows what its hosts run: weftctl restore status shows what it waits\n" +
			"for. No other bootd of this Site may be running.",
		Example: "  bootd restore /mnt/backup/site.age --identity /root/key.txt\n" +
			"  bootd restore site.age --passphrase-file - --check",
		Args: oneFile("bootd restore FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, log, err := at.load(cmd)
			if err != nil {
				return err
			}
			with, err := decryptWith(identity, passphraseFile)
			if err != nil {
				return exit.Fault(err)
			}
			report, err := bootd.Restore(cmd.Context(), bootd.RestoreOptions{Config: conf, File: args[0], With: with, Replace: replace, CheckOnly: check, WithoutStore: withoutStore}, log)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), report.Text())
			return err
		},
	}
	at.flags(c)
	f := c.Flags()
	f.StringVar(&identity, "identity", "", "file with the age identity that decrypts the backup")
	f.StringVar(&passphraseFile, "passphrase-file", "", "file whose first line is the passphrase; - for standard input (default: ask on the terminal)")
	f.BoolVar(&replace, "replace", false, "move the present contents of the state directory into a directory next to it")
	f.BoolVar(&withoutStore, "without-store", false, "restore only the seal key, CA and blobs: the external etcd still holds the store")
	f.BoolVar(&check, "check", false, "check the backup and write nothing")
	return c
}

func oneFile(usage string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return exit.Fault(errors.New("name one file: " + usage))
		}
		return nil
	}
}

// quieter suppresses a daemon's start-up messages for a single command.
func quieter(level string) string {
	if level == "info" {
		return "warn"
	}
	return level
}

func encryptTo(recipients []string, passphraseFile string) ([]backup.Recipient, error) {
	if len(recipients) > 0 {
		if passphraseFile != "" {
			return nil, errors.New("--recipient and --passphrase-file exclude each other: an age file has either a passphrase or recipients")
		}
		return backup.ToRecipients(recipients)
	}
	phrase, err := passphrase(passphraseFile, true)
	if err != nil {
		return nil, err
	}
	to, err := backup.ToPassphrase(phrase)
	return []backup.Recipient{to}, err
}

func decryptWith(identity, passphraseFile string) ([]backup.Identity, error) {
	if identity != "" {
		if passphraseFile != "" {
			return nil, errors.New("--identity and --passphrase-file exclude each other: give the one that the backup was made with")
		}
		raw, err := os.ReadFile(identity)
		if err != nil {
			return nil, fmt.Errorf("read the identity: %w", err)
		}
		return backup.FromIdentities(raw)
	}
	phrase, err := passphrase(passphraseFile, false)
	if err != nil {
		return nil, err
	}
	with, err := backup.FromPassphrase(phrase)
	return []backup.Identity{with}, err
}

// passphrase comes from a file, from standard input or from the terminal: never
// from the command line, which every process can read.
func passphrase(file string, twice bool) (string, error) {
	switch file {
	case "-":
		return firstLine(os.Stdin)
	case "":
		return askPassphrase(twice)
	}
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("read the passphrase: %w", err)
	}
	defer func() { _ = f.Close() }()
	return firstLine(f)
}

func firstLine(r io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(r, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the passphrase: %w", err)
	}
	line = strings.TrimRight(line, "\r\n")
	if line == "" {
		return "", errors.New("read the passphrase: the first line is empty")
	}
	return line, nil
}

func askPassphrase(twice bool) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", errors.New("no terminal to read the passphrase from: give a file with --passphrase-file, or an age key with --recipient (backup) or --identity (restore)")
	}
	defer func() { _ = tty.Close() }()
	ask := func(prompt string) (string, error) {
		_, _ = fmt.Fprint(tty, prompt)
		raw, err := term.ReadPassword(int(tty.Fd()))
		_, _ = fmt.Fprintln(tty)
		return string(raw), err
	}
	first, err := ask("Passphrase of the backup: ")
	if err != nil || !twice {
		return first, err
	}
	second, err := ask("The same again: ")
	if err == nil && first != second {
		err = errors.New("the two passphrases differ")
	}
	return first, err
}
