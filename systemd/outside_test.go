package systemd

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A stand-in for systemd-run shows what it was asked for.
func TestRunOutside(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	script := "#!/bin/sh\nprintf '%s\\n' \"$@\" >" + dir + "/args\nwhile [ \"$1\" != -- ]; do shift; done\nshift\nexec \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "systemd-run"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	made := filepath.Join(dir, "made by it")
	if err := RunOutside(ctx, "a test", "touch", made); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(made); err != nil {
		t.Error(err)
	}
	args, err := os.ReadFile(filepath.Join(dir, "args"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"--service-type=oneshot\n", "--collect\n", "--description=a test\n--\ntouch\n" + made} {
		if !strings.Contains(string(args), want) {
			t.Errorf("systemd-run was given:\n%s\nwithout %q", args, want)
		}
	}
	err = RunOutside(ctx, "a test", "sh", "-c", "echo no such luck >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "no such luck") {
		t.Errorf("the error is %v", err)
	}
	service := Service{Name: "a.service", Description: "a test", Slice: "s.slice", Properties: []string{"CPUWeight=7"}}
	if err := StartOutside(ctx, service, "true"); err != nil {
		t.Error(err)
	}
	args, err = os.ReadFile(filepath.Join(dir, "args"))
	if err != nil || !strings.Contains(string(args), "--unit=a.service\n--slice=s.slice\n--description=a test\n--property=CPUWeight=7\n--\ntrue\n") {
		t.Errorf("systemd-run was given:\n%s (%v)", args, err)
	}
	t.Setenv("PATH", "/nowhere")
	if err := StartOutside(ctx, service, "true"); err == nil || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("the error is %v", err)
	}
	if err := RunOutside(ctx, "a test", "true"); err == nil || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("the error is %v", err)
	}
}
