package bootd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoadConfig(t *testing.T) {
	digest := strings.Repeat("a", 64)
	for _, c := range []struct {
		name, yaml, fault string
	}{
		{name: "empty"},
		{name: "comments only", yaml: "# nothing\n"},
		{name: "everything", yaml: "interfaces: [eth1]\nlisten: {api: '198.18.0.1:8443', http: ':8081', tftp: ':6969'}\nadvertise: ['https://boot.example:8443']\nstore: {endpoints: ['https://198.18.0.9:2379']}\nipxe: /srv/ipxe\nnodeagent: /srv/nodeagent\nreserve: 1Gi\nimages: {allow: ['127.0.0.1', '198.18.0.0/24', 'mirror.example:8080']}\nlogLevel: debug\ntokens: [{name: ann, role: viewer, sha256: " + digest + "}]\n"},
		{name: "unknown field", yaml: "listn: {}\n", fault: "/listn"},
		{name: "unknown field inside", yaml: "listen: {apis: ':1'}\n", fault: "/listen/apis"},
		{name: "written twice", yaml: "ipxe: a\nipxe: b\n", fault: "ipxe"},
		{name: "no YAML", yaml: "a: [\n", fault: "yaml"},
		{name: "a list", yaml: "- a\n", fault: "bootd.yaml"},
		{name: "a port that is none", yaml: "listen: {api: ':99999'}\n", fault: "99999"},
		{name: "no port", yaml: "listen: {http: 'localhost'}\n", fault: ":port"},
		{name: "a name for an address", yaml: "listen: {http: 'boot:80'}\n", fault: `invalid address "boot"`},
		{name: "advertise", yaml: "advertise: ['http://boot.example']\n", fault: "https://host:8443"},
		{name: "a token's role", yaml: "tokens: [{name: ann, role: king, sha256: " + digest + "}]\n", fault: "tokens[0]"},
		{name: "a token in the clear", yaml: "tokens: [{name: ann, role: viewer, sha256: hunter2}]\n", fault: "sha256"},
		{name: "what Images may fetch from", yaml: "images: {allow: ['http://mirror/']}\n", fault: "images.allow"},
		{name: "log level", yaml: "logLevel: loud\n", fault: "loud"},
		{name: "reserve", yaml: "reserve: lots\n", fault: "lots"},
		{name: "a negative reserve", yaml: "reserve: '-1Gi'\n", fault: "reserve"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bootd.yaml")
			if err := os.WriteFile(path, []byte(c.yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := LoadConfig(path, true)
			if c.fault == "" {
				if err != nil || got.Listen.API == "" || got.IPXE == "" || got.Nodeagent == "" || got.Reserve.Value() <= 0 || got.LogLevel == "" {
					t.Errorf("%+v, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.fault) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want %s and the file's name", err, c.fault)
			}
		})
	}
}

func TestConfigNeedNotExist(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bootd.yaml")
	if c, err := LoadConfig(path, false); err != nil || c.Listen.API != ":8443" {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := LoadConfig(path, true); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
}

func FuzzLoadConfig(f *testing.F) {
	for _, seed := range []string{"", "interfaces: [eth1]", "listen: {api: ':8443'}", "tokens: [{}]", "reserve: 1Gi", "advertise: [x]", "null", "a: &a [*a]", "? {}"} {
		f.Add([]byte(seed))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(dir, "bootd.yaml")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := LoadConfig(path, true)
		if err != nil {
			return
		}
		for _, l := range []string{c.Listen.API, c.Listen.HTTP, c.Listen.TFTP} {
			if _, err := listenAddr(l); err != nil {
				t.Errorf("%q passes, and cannot be listened on: %v", l, err)
			}
		}
	})
}
