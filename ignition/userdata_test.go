package ignition

import (
	"strings"
	"testing"
)

func TestUserData(t *testing.T) {
	facts := map[string]any{"Guest": map[string]any{"Name": "web"}}
	secret := func(layer, name, key string) (string, error) { return "s3cret: [\n", nil }
	for text, want := range map[string]string{
		"":                "",
		"#cloud-config\n": "#cloud-config\n",
		"#cloud-config\nfqdn: {{ .Guest.Name }}\n":               "#cloud-config\nfqdn: web\n",
		"#cloud-config\nkey: {{ secret \"a\" \"b\" | quote }}\n": "#cloud-config\nkey: \"s3cret: [\\n\"\n",
		"#!/bin/sh\necho {{ .Guest.Name }}":                      "#!/bin/sh\necho web",
		"#cloud-config-archive\n- a":                             "#cloud-config-archive\n- a",
		"Content-Type: multipart/mixed; boundary=b\n\n--b--":     "Content-Type: multipart/mixed; boundary=b\n\n--b--",
	} {
		if got, err := UserData(text, facts, secret); err != nil || string(got) != want {
			t.Errorf("%q gives %q, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"users: []\n":                                  `line 1: cloud-init would ignore this`,
		"\n#cloud-config\n":                            `line 1: cloud-init would ignore this`,
		"#cloud-config\n- a\n":                         `line 2: invalid #cloud-config`,
		"#cloud-config\na: b\nc: [\n":                  `line 3: did not find expected node content`,
		"#cloud-config\na: {{ .Guest.Nane }}\n":        `line 2`,
		"#cloud-config\na: {{ secret \"a\" \"b\" }}\n": `the value of a Secret makes it invalid`,
	} {
		if got, err := UserData(text, facts, secret); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q gives %q, %v; want %s", text, got, err, want)
		}
	}
}

func FuzzUserData(f *testing.F) {
	f.Add("#cloud-config\na: {{ secret \"a\" \"b\" }}\n")
	f.Add("#!/bin/sh\n{{ .Guest.Name }}")
	f.Fuzz(func(t *testing.T, text string) {
		const value = "correct horse: battery\tstaple"
		_, err := UserData(text, map[string]any{"Guest": map[string]any{"Name": "web"}}, func(string, string, string) (string, error) { return value, nil })
		if err != nil && strings.Contains(err.Error(), value) && !strings.Contains(text, value) {
			t.Errorf("the error shows a Secret: %v", err)
		}
	})
}
