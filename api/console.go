package api

import "time"

// ConsoleKind is how a Machine's serial console is reached.
type ConsoleKind string

// The ConsoleKinds, as far as they are needed here.
const NoConsole ConsoleKind = "none"

// When bootd has a Machine's serial console open.
const (
	ConsoleBoot     = "boot"     // while a BootAttempt is open, and while a person is attached
	ConsoleAttached = "attached" // only while a person is attached
)

// HasConsole reports whether the Machine is known to have a serial console.
func (m *Machine) HasConsole() bool {
	kind := m.Status.BMC.Console
	return kind != "" && kind != NoConsole
}

// ConsoleLine is a line that a Machine's serial console has shown.
type ConsoleLine struct {
	Time    time.Time `json:"time" doc:"When bootd received the end of it."`
	Attempt int       `json:"attempt,omitzero" doc:"Number of the BootAttempt that it is of, or that was the last then."`
	Text    string    `json:"text" doc:"At most 400 bytes, without control sequences; what looks like a secret of a BootAttempt is masked."`
}

// ConsoleLog is what bootd has kept of a Machine's serial console.
type ConsoleLog struct {
	Console ConsoleKind   `json:"console,omitzero" doc:"How the console is reached; none where the BMC has none."`
	Lines   []ConsoleLine `json:"lines" doc:"The last lines, oldest first, at most 400."`
}
