package bmc

import (
	"path"
	"strings"
)

// SSHStyle is a vendor's way to the serial port over SSH.
type SSHStyle string

const (
	OpenBMC    SSHStyle = ""           // a port of its own, which is the serial port
	ILO        SSHStyle = "ilo"        // vsp
	IDRAC      SSHStyle = "idrac"      // console com2
	XCC        SSHStyle = "xcc"        // console 1
	XCCLater   SSHStyle = "xcc-later"  // console start
	Supermicro SSHStyle = "supermicro" // DMTF's SMASH CLP: cd system1/sol1; start
)

// dialect is what a vendor's command line says and understands.
type dialect struct {
	prompt  string // empty: there is no command line
	entry   string // the command that opens the console
	opened  string // what that prints
	busy    string // what it prints while another has the console
	free    string // the command that takes the console from another; empty: there is none
	unknown string // what any other command prints
	hangUp  string // the keys that end the console; empty: only the connection does
	display string // the same for people
}

func (s SSHStyle) dialect() dialect {
	switch s {
	case ILO:
		return dialect{
			prompt: "</>hpiLO-> ", entry: "vsp", free: "stop /system1/oemhp_vsp1", hangUp: "\x1b(", display: "ESC (",
			opened:  "\r\nVirtual Serial Port Active: COM2\r\n\r\nStarting virtual serial port.\r\nPress 'ESC (' to return to the CLI Session.\r\n\r\n",
			busy:    "\r\nVirtual Serial Port is currently in use by another session.\r\n\r\n",
			unknown: "status=2\r\nstatus_tag=COMMAND PROCESSING FAILED\r\nerror_tag=COMMAND NOT RECOGNIZED\r\n",
		}
	case IDRAC:
		return dialect{
			prompt: "racadm>>", entry: "console com2", hangUp: "\x1c", display: "^\\",
			opened:  "\r\nConnected to Serial Device 2. To end type: ^\\\r\n",
			busy:    "\r\nThe serial device is in use by another session.\r\n",
			unknown: "ERROR: Invalid subcommand specified.\r\n",
		}
	case XCC:
		return dialect{
			prompt: "system> ", entry: "console 1", free: "console kill 1", hangUp: "\x1b(", display: "ESC (",
			opened:  "\r\n",
			busy:    "\r\nThe console is in use by another session.\r\n",
			unknown: "Invalid command syntax.\r\n",
		}
	case XCCLater:
		return dialect{
			prompt: "system> ", entry: "console start", free: "console kill", hangUp: "\x1b(", display: "ESC (",
			opened:  "\r\n",
			busy:    "\r\nThe console is in use by another session.\r\n",
			unknown: "The command line contains extraneous arguments\r\n",
		}
	case Supermicro:
		return dialect{
			prompt: "-> ", entry: "cd system1/sol1; start", hangUp: "\x1bT", display: "ESC T",
			opened:  "\r\npress <Enter>, <Esc>, and then <T> to terminate session\r\n",
			busy:    "\r\nSOL is in use by another session.\r\n",
			unknown: "COMMAND NOT RECOGNIZED\r\n",
		}
	}
	return dialect{display: "~."} // the SSH client's own
}

// port is where the console of the system of that number is reached: each has a
// port of its own, from OpenBMC's 2200 on, and the first has SSH's where there
// is a command line.
func (s SSHStyle) port(number int) int {
	if s != OpenBMC && number == 1 {
		return 22
	}
	return 2200 + number - 1
}

// order is what a command asks for.
type order int

const (
	orderNothing order = iota // it is done, or was empty
	orderConsole
	orderFree
	orderLeave
	orderUnknown
)

// commandLine reads the commands of a dialect. Only SMASH has a place to be at.
type commandLine struct {
	style SSHStyle
	at    string
}

// consoleTarget is the serial port in SMASH's address space.
const consoleTarget = "/system1/sol1"

// read reads one command.
func (c *commandLine) read(command string) order {
	words := strings.Fields(strings.ToLower(command))
	if len(words) == 0 {
		return orderNothing
	}
	switch words[0] {
	case "exit", "quit":
		return orderLeave
	}
	if c.style == Supermicro {
		return c.smash(words)
	}
	switch d := c.style.dialect(); strings.Join(words, " ") {
	case d.entry:
		return orderConsole
	case d.free:
		return orderFree
	}
	return orderUnknown
}

func (c *commandLine) smash(words []string) order {
	target := c.at
	if len(words) > 1 && path.IsAbs(words[1]) {
		target = path.Clean(words[1])
	} else if len(words) > 1 {
		target = path.Join("/", c.at, words[1])
	}
	switch {
	case len(words) > 2:
		return orderUnknown
	case words[0] == "cd" && (target == "/" || target == "/system1" || target == consoleTarget):
		c.at = target
		return orderNothing
	case words[0] == "start" && target == consoleTarget:
		return orderConsole
	}
	return orderUnknown
}
