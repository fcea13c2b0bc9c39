package ipmi

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/internal/text"
)

// refusal is a completion code other than 0 (§5.2).
type refusal struct {
	code  byte
	words string // ipmitool's
}

func (r *refusal) Error() string {
	return fmt.Sprintf("BMC refuses it: %s (code %#02x)", r.words, r.code)
}

// Is sorts the codes into what callers branch on.
func (r *refusal) Is(target error) bool {
	switch r.code {
	case 0x80, 0xc1, 0xc2, 0xc9, 0xcc, 0xd6: // no such parameter or command, or it is switched off
		return target == hardware.ErrUnsupported
	case 0xd4:
		return target == hardware.ErrForbidden
	}
	return false
}

// busy: the BMC has not begun it.
func (r *refusal) busy() bool { return r.code == 0xc0 || r.code == 0xd2 }

// already: the state does not allow it, which may be because it is the one that was asked for.
func (r *refusal) already() bool { return r.code == 0xd5 }

var completion = regexp.MustCompile(`rsp=0x([0-9a-f]{1,2})\): *([^\n]*)`)

// failure tells why ipmitool failed from what it said of it.
func (t *tool) failure(said string) error {
	if m := completion.FindStringSubmatch(said); m != nil {
		code, err := strconv.ParseUint(m[1], 16, 8)
		if err == nil {
			return &refusal{code: byte(code), words: clip(m[2])}
		}
	}
	if err := t.sessionFailure(said); err != nil {
		return err
	}
	return fmt.Errorf("ipmitool: %s", clip(lastWords(said)))
}

// sessionFailure tells why there is no session; nil when that is not what failed. The words are those of ipmitool 1.8.19,
// which names the status codes of §13.24 so.
func (t *tool) sessionFailure(said string) error {
	says := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(said, w) {
				return true
			}
		}
		return false
	}
	why := clip(reason(said))
	switch {
	case says("HMAC is invalid", "unauthorized name", "unauthorized GUID"):
		return fmt.Errorf("%w: user %q (%s): check user name and password in its Secret; some BMCs lock accounts for a while",
			hardware.ErrUnauthorized, t.username, why)
	case says("Set Session Privilege Level to", "invalid role", "unauthorized role"):
		return fmt.Errorf("%w: user %q may not be %s (%s): set spec.bmc.ipmi.privilege to what it may be",
			hardware.ErrUnauthorized, t.username, t.privilege, why)
	case says("algorithm", "no matching cipher suite", "no cipher suite match", "ipher suite"):
		return fmt.Errorf("BMC does not take cipher suite %d (%s)%s", t.suite, why, t.otherSuite())
	case says("insufficient resources"):
		return fmt.Errorf("BMC takes no login (%s): all its sessions may be in use, they end by themselves within a minute", why)
	case says("RAKP 4"):
		return fmt.Errorf("BMC does not prove that it knows the password (%s): if it has a key K_g, which is not supported, clear that", why)
	case says("Unable to establish IPMI v2"):
		return fmt.Errorf("%w: %s", hardware.ErrUnreachable, why)
	}
	return nil
}

func (t *tool) otherSuite() string {
	if t.suite == defaultSuite {
		return ": where it has no better, write spec.bmc.ipmi.cipherSuite: 3"
	}
	return ": leave spec.bmc.ipmi.cipherSuite out, or enable the suite in the BMC"
}

// noise is what verbose ipmitool says of things that do not matter.
func noise(line string) bool {
	for _, start := range []string{"Loading IANA", "Running Get", "Invalid completion code received", "Discovered", "RAW RE", "Get HPM", "Info: "} {
		if strings.HasPrefix(line, start) && !strings.HasPrefix(line, "Info: SOL") {
			return true
		}
	}
	return line == ""
}

// reason is the first line that matters: the later ones say what followed from it.
func reason(said string) string {
	for line := range strings.Lines(said) {
		if line = strings.Trim(line, "> \r\n"); !noise(line) {
			return line
		}
	}
	return "no reason given"
}

func lastWords(said string) string {
	last := "it failed without a word"
	for line := range strings.Lines(said) {
		if line = strings.Trim(line, "> \r\n"); !noise(line) {
			last = line
		}
	}
	return last
}

func clip(s string) string { return text.Clip(strings.TrimSpace(s), 200) }

// unsupported is an UnsupportedError in the making: Service.do adds the verb.
func unsupported(why string) error { return fmt.Errorf("%w: %s", hardware.ErrUnsupported, why) }
