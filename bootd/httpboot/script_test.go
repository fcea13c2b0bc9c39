package httpboot

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestScriptText(t *testing.T) {
	got, err := Script{
		Title:  "r1u07 boots debian || 1; # ${x}\nimgfree",
		Kernel: "http://198.18.0.1:8080/blobs/sha256/aa",
		Initrd: []Initrd{{URL: "/blobs/sha256/bb"}, {URL: "/blobs/sha256/cc", Name: "extra.img"}},
		Args:   []string{"console=ttyS0,115200n8", `dyndbg="file drivers/usb/* +p"`, "BOOTIF=52:54:00:01:07:00"},
	}.text()
	if err != nil {
		t.Fatal(err)
	}
	want := `#!ipxe
echo rackweft: r1u07 boots debian '||' 1; '#' $ {x} imgfree
imgfree
kernel --name kernel http://198.18.0.1:8080/blobs/sha256/aa initrd=initrd0 initrd=extra.img console=ttyS0,115200n8 dyndbg="file drivers/usb/* +p" BOOTIF=52:54:00:01:07:00 || goto failed
initrd --name initrd0 /blobs/sha256/bb || goto failed
initrd --name extra.img /blobs/sha256/cc || goto failed
boot || goto failed
:failed
echo rackweft: the boot has failed; starting over in 5 s
:again
imgfree
sleep 5
chain --replace --autofree /boot.ipxe || goto again
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestScriptRefuses(t *testing.T) {
	k := "/blobs/sha256/aa"
	cases := map[string]struct {
		s    Script
		want string
	}{
		"newline in an argument":      {Script{Kernel: k, Args: []string{"a\nboot"}}, "printable"},
		"end of command":              {Script{Kernel: k, Args: []string{"a || shell"}}, "end the command"},
		"end of command as a word":    {Script{Kernel: k, Args: []string{"&&"}}, "end the command"},
		"semicolon":                   {Script{Kernel: k, Args: []string{"; "}}, "end the command"},
		"comment":                     {Script{Kernel: k, Args: []string{"#x"}}, "end the command"},
		"expansion":                   {Script{Kernel: k, Args: []string{"a=${net0/mac}"}}, "expand"},
		"two spaces":                  {Script{Kernel: k, Args: []string{`a="b  c"`}}, "one space"},
		"too long":                    {Script{Kernel: k, Args: []string{strings.Repeat("a", 2048)}}, "2047"},
		"space in the kernel's URL":   {Script{Kernel: "/a b"}, "kernel URL"},
		"colon in a path":             {Script{Kernel: "/blobs/sha256:aa"}, "kernel URL"},
		"kernel by another protocol":  {Script{Kernel: "file:/x"}, "kernel URL"},
		"newline in an initrd's URL":  {Script{Kernel: k, Initrd: []Initrd{{URL: "/a\nb"}}}, "initrd URL"},
		"newline at the end of a URL": {Script{Kernel: k + "\n"}, "kernel URL"},
		"initrd named as an option":   {Script{Kernel: k, Initrd: []Initrd{{URL: "/a", Name: "--x"}}}, "initrd name"},
		"two initrds of one name":     {Script{Kernel: k, Initrd: []Initrd{{URL: "/a", Name: "x"}, {URL: "/b", Name: "x"}}}, "initrd name"},
		"no kernel":                   {Script{Args: []string{"quiet"}}, "no kernel"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if text, err := c.s.text(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q, %v", text, err)
			}
		})
	}
}

func TestFirstStageIsPlainASCII(t *testing.T) {
	onDisk, err := os.ReadFile("firststage.ipxe")
	if err != nil || string(onDisk) != firstStage {
		t.Fatal("embedded text differs", err)
	}
	if !strings.HasPrefix(firstStage, "#!ipxe\n") || strings.IndexFunc(firstStage, func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }) >= 0 {
		t.Error("iPXE prints only ASCII")
	}
}

// commands splits a script as iPXE's exec.c does: lines, then words, then commands at "||", "&&", ";".
func commands(script string) (names []string) {
	for line := range strings.Lines(script) {
		begin := true
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "#") {
				break
			}
			if begin {
				names = append(names, word)
			}
			begin = word == "||" || word == "&&" || word == ";"
		}
	}
	return names
}

func FuzzScript(f *testing.F) {
	f.Add("title", "/kernel", "/initrd", "name", "quiet splash")
	f.Add("a\nboot", "/k || shell", "http://x/${y}", "a b", "x; reboot")
	f.Add("# x", "tftp://h/k\n", "/\r", "-n", "a && b")
	f.Fuzz(func(t *testing.T, title, kernel, initrd, name, arg string) {
		s := Script{Title: title, Kernel: kernel, Initrd: []Initrd{{URL: initrd, Name: name}}, Args: []string{arg}}
		text, err := s.text()
		held := waitScript(title, time.Second)
		check(t, held, "echo echo :again imgfree sleep chain goto")
		if err != nil {
			return
		}
		want := "imgfree kernel goto initrd goto boot goto :failed echo :again imgfree sleep chain goto"
		if title != "" {
			want = "echo " + want
		}
		check(t, text, want)
		if got := strings.Count(text, "${"); got != 0 {
			t.Errorf("%d expansions in\n%s", got, text)
		}
	})
}

func check(t *testing.T, script, want string) {
	t.Helper()
	if got := strings.Join(commands(script), " "); got != want {
		t.Errorf("commands %s\nwant %s\nin %s", got, want, script)
	}
	for line := range strings.Lines(script) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasSuffix(line, `\`) || strings.IndexFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
			t.Errorf("line %q", line)
		}
	}
}
