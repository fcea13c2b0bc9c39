package nodeagent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
)

// LinkState is the state of the host's connection to bootd.
type LinkState string

// The states of the link to bootd.
const (
	LinkJoining    LinkState = "joining"
	LinkRefused    LinkState = "refused"
	LinkConnecting LinkState = "connecting"
	LinkConnected  LinkState = "connected"
)

// Link is the host's connection to bootd.
type Link struct {
	State  LinkState `json:"state"`
	Server string    `json:"server,omitzero"`
	Since  time.Time `json:"since"`
	Error  string    `json:"error,omitzero"`
}

// Status is the agent's status for people on the host, in RUN-DIR/status.json.
type Status struct {
	Machine string         `json:"machine"`
	PID     int            `json:"pid"`
	Joined  bool           `json:"joined"`
	Link    Link           `json:"link"`
	Problem string         `json:"problem,omitzero"` // of the host itself, such as a full disk
	Known   api.Bookmark   `json:"known"`            // HostSpec that the host has; host.revision is the applied one
	Host    api.HostStatus `json:"host"`
}

// Line is the status in one line, for systemctl status.
func (s Status) Line() string {
	var b strings.Builder
	switch s.Link.State {
	case LinkConnected:
		fmt.Fprintf(&b, "Connected to %s", s.Link.Server)
	case LinkRefused:
		fmt.Fprintf(&b, "Not joined: %s", s.Link.Error)
	case LinkJoining:
		b.WriteString("Joining")
	case LinkConnecting:
		fmt.Fprintf(&b, "Without bootd since %s", s.Link.Since.UTC().Format("15:04:05 MST"))
	}
	if s.Link.State != LinkRefused && s.Link.Error != "" {
		fmt.Fprintf(&b, " (%s)", s.Link.Error)
	}
	if len(s.Host.Parts) > 0 {
		fmt.Fprintf(&b, "; HostSpec %d/%d, %s", s.Host.Epoch, s.Host.Revision, countParts(s.Host.Parts))
	}
	if s.Problem != "" {
		fmt.Fprintf(&b, "; %s", s.Problem)
	}
	return b.String()
}

// countParts returns text such as "3 parts: 2 Applied, 1 Pending".
func countParts(parts map[string]api.PartStatus) string {
	count := map[api.PartState]int{}
	for _, p := range parts {
		count[p.State]++
	}
	var words []string
	for _, state := range slices.Sorted(maps.Keys(count)) {
		words = append(words, fmt.Sprintf("%d %s", count[state], state))
	}
	return fmt.Sprintf("%d parts: %s", len(parts), strings.Join(words, ", "))
}

func statusPath(runDir string) string { return filepath.Join(runDir, "status.json") }

func (s Status) write(runDir string) error {
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the status: %w", err)
	}
	if err := file.Replace(statusPath(runDir), append(raw, '\n'), file.Options{}); err != nil {
		return fmt.Errorf("write the status: %w", err)
	}
	return nil
}

// ReadStatus reads the status that the agent with these directories last wrote. It
// is an error if no agent runs on them; the Status is then the last one, if any.
func ReadStatus(stateDir, runDir string) (Status, error) {
	var s Status
	raw, err := os.ReadFile(statusPath(runDir))
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("nodeagent has not run since the machine booted (there is no %s): see systemctl status nodeagent", statusPath(runDir))
	}
	if err != nil {
		return s, fmt.Errorf("read the status: %w", err)
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, fmt.Errorf("%s: %w", statusPath(runDir), err)
	}
	if !locked(stateDir) {
		return s, errors.New("nodeagent is not running, this is its last status: see journalctl -u nodeagent")
	}
	return s, nil
}

// Print writes the status for people.
func (s Status) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(w, "%s\t"+format+"\n", append([]any{name}, args...)...) // Flush returns the error
	}
	row("Machine", "%s", s.Machine)
	if s.Joined {
		row("Joined", "yes, as %s in BootAttempt %s", s.Host.UID, s.Host.AttemptID)
	} else {
		row("Joined", "no")
	}
	row("Link", "%s since %s", strings.TrimSpace(fmt.Sprintf("%s %s", s.Link.State, s.Link.Server)), s.Link.Since.UTC().Format(time.RFC3339))
	if s.Link.Error != "" {
		row("", "%s", s.Link.Error)
	}
	if s.Problem != "" {
		row("Problem", "%s", s.Problem)
	}
	row("Agent", "%s, pid %d", s.Host.AgentVersion, s.PID)
	row("System", "%s, kernel %s", s.Host.OS, s.Host.Kernel)
	row("HostSpec", "epoch %d revision %d known, %d applied", s.Known.Epoch, s.Known.Revision, s.Host.Revision)
	for _, name := range slices.Sorted(maps.Keys(s.Host.Parts)) {
		p := s.Host.Parts[name]
		row("  "+name, "%s", strings.TrimRight(fmt.Sprintf("%s  %s", p.State, p.Message), " "))
	}
	return w.Flush()
}
