package httpboot

import (
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// firstStage is what /boot.ipxe answers. It must work with the iPXE of 2019 that Debian 12 ships.
//
//go:embed firststage.ipxe
var firstStage string

// Script boots a kernel. The zero Script boots nothing: it prints Title, waits and asks again.
//
// URLs are http://, https:// or tftp://, or paths ("/blobs/sha256/…"), which iPXE resolves against the
// server that it got the script from.
type Script struct {
	Title  string // printed on the console
	Kernel string // URL
	Initrd []Initrd
	Args   []string // of the kernel, without initrd=, which is added
}

// Initrd is one of the images that make up the initial RAM file system, in order.
type Initrd struct {
	URL  string
	Name string // letters, digits, dots, dashes; "initrd0" for the first and so on if empty
}

// maxArgs is COMMAND_LINE_SIZE of Linux on x86 and arm64, less the closing NUL.
const maxArgs = 2047

var (
	goodName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	// goodURL excludes characters that iPXE would split, expand or end a
	// command at. A path has no colon: iPXE takes everything before the first
	// one for the scheme.
	goodURL = regexp.MustCompile(`^((https?|tftp)://[A-Za-z0-9._~:/?&=%@+,\[\]-]*|/[A-Za-z0-9._~/?&=%@+,-]*)$`)
)

// Text returns the Script as iPXE reads it, or an error if that is impossible.
func (s Script) Text() (string, error) { return s.text() }

// text returns the Script as iPXE reads it. iPXE has no quotes: it expands
// ${…}, splits a line at white space, and ends a command at a word that is
// "||", "&&" or ";", or begins with "#". Values that this would change are an
// error.
//
// If anything fails on the machine, the script frees the images, waits and
// starts over at /boot.ipxe. It never falls through to the firmware's next boot
// device, which could be an old disk.
func (s Script) text() (string, error) {
	var b strings.Builder
	b.WriteString("#!ipxe\n")
	if s.Title != "" {
		fmt.Fprintf(&b, "echo rackweft: %s\n", echoText(s.Title))
	}
	if s.Kernel != "" {
		if err := s.writeBoot(&b); err != nil {
			return "", err
		}
		b.WriteString(":failed\necho rackweft: the boot has failed; starting over in 5 s\n")
	} else if len(s.Initrd) > 0 || len(s.Args) > 0 {
		return "", errors.New("iPXE script: initrds or arguments, but no kernel")
	}
	writeRestart(&b, 5*time.Second)
	return b.String(), nil
}

func (s Script) writeBoot(b *strings.Builder) error {
	if !goodURL.MatchString(s.Kernel) {
		return fmt.Errorf("iPXE script: kernel URL %q: only http, https, tftp or a path, without spaces, $ or #", s.Kernel)
	}
	var words []string
	names := map[string]bool{"kernel": true}
	var fetch strings.Builder
	for i, rd := range s.Initrd {
		if rd.Name == "" {
			rd.Name = fmt.Sprintf("initrd%d", i)
		}
		if !goodName.MatchString(rd.Name) || names[rd.Name] {
			return fmt.Errorf("iPXE script: initrd name %q: must be unique, not \"kernel\", and of letters, digits, dots and dashes", rd.Name)
		}
		names[rd.Name] = true
		if !goodURL.MatchString(rd.URL) {
			return fmt.Errorf("iPXE script: initrd URL %q: only http, https, tftp or a path, without spaces, $ or #", rd.URL)
		}
		// A kernel with an EFI stub finds its initrd by this name in iPXE's
		// file system; a BIOS gets it from iPXE anyway.
		words = append(words, "initrd="+rd.Name)
		fmt.Fprintf(&fetch, "initrd --name %s %s || goto failed\n", rd.Name, rd.URL)
	}
	for _, arg := range s.Args {
		fields, err := argWords(arg)
		if err != nil {
			return err
		}
		words = append(words, fields...)
	}
	line := strings.Join(words, " ")
	if len(line) > maxArgs {
		return fmt.Errorf("iPXE script: the kernel arguments have %d bytes, and Linux takes %d", len(line), maxArgs)
	}
	kernel := strings.TrimRight("kernel --name kernel "+s.Kernel+" "+line, " ")
	fmt.Fprintf(b, "imgfree\n%s || goto failed\n%sboot || goto failed\n", kernel, fetch.String())
	return nil
}

// argWords splits one kernel argument as iPXE does.
func argWords(arg string) ([]string, error) {
	for _, c := range []byte(arg) {
		if c < ' ' || c > '~' {
			return nil, fmt.Errorf("iPXE script: kernel argument %q: only printable ASCII can be passed on", arg)
		}
	}
	if strings.Contains(arg, "${") {
		return nil, fmt.Errorf("iPXE script: kernel argument %q: iPXE would expand ${…}", arg)
	}
	if strings.Contains(arg, "  ") {
		return nil, fmt.Errorf("iPXE script: kernel argument %q: iPXE would make one space of several", arg)
	}
	words := strings.Fields(arg)
	for _, w := range words {
		if endsCommand(w) {
			return nil, fmt.Errorf("iPXE script: kernel argument %q: iPXE would end the command at %q", arg, w)
		}
	}
	return words, nil
}

func endsCommand(word string) bool {
	return word == "||" || word == "&&" || word == ";" || strings.HasPrefix(word, "#")
}

// waitScript returns a script that prints why a machine waits, waits, and tries
// again.
func waitScript(reason string, wait time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "#!ipxe\necho rackweft: %s\necho rackweft: next try in %d s\n", echoText(reason), seconds(wait))
	writeRestart(&b, wait)
	return b.String()
}

func writeRestart(b *strings.Builder, wait time.Duration) {
	fmt.Fprintf(b, ":again\nimgfree\nsleep %d\nchain --replace --autofree /boot.ipxe || goto again\n", seconds(wait))
}

// seconds rounds up to the whole seconds of iPXE and Retry-After.
func seconds(d time.Duration) int {
	return max(1, int((d+time.Second-1)/time.Second))
}

// maxEcho bounds the printed part of a reason.
const maxEcho = 400

// echoText turns any text into words that iPXE's echo prints unchanged. The
// caller puts a word in front, so that it cannot begin with a dash.
func echoText(s string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r < ' ' || r == 0x7f:
			return ' '
		case r > '~':
			return '?'
		case r == '\\': // at the end of a line it would join the next one
			return '/'
		default:
			return r
		}
	}, s)
	if len(clean) > maxEcho { // all of it is ASCII
		clean = clean[:maxEcho] + "..."
	}
	words := strings.Fields(strings.ReplaceAll(clean, "${", "$ {"))
	for i, w := range words {
		if endsCommand(w) {
			words[i] = "'" + w + "'"
		}
	}
	return strings.Join(words, " ")
}
