package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCount(t *testing.T) {
	const log = `{"Action":"run","Package":"a","Test":"TestX"}
{"Action":"output","Package":"a","Test":"TestX","Output":"    x_test.go:12: no vlan\n"}
{"Action":"output","Package":"a","Test":"TestX","Output":"    x_test.go:13: needs 8021q\n"}
{"Action":"output","Package":"a","Test":"TestX","Output":"--- SKIP: TestX (0.00s)\n"}
{"Action":"skip","Package":"a","Test":"TestX"}
{"Action":"skip","Package":"b","Test":"TestZ"}
{"Action":"output","Package":"b","Test":"TestX","Output":"    y_test.go:7: needs 8021q\n"}
{"Action":"skip","Package":"b","Test":"TestX"}
{"Action":"pass","Package":"b","Test":"TestY/part"}
{"Action":"fail","Package":"b","Test":"TestY"}
{"Action":"skip","Package":"c"}
`
	file := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(file, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := run([]string{file}, &out); err != nil {
		t.Fatal(err)
	}
	const want = "2 tests run, 3 skipped\n   2  needs 8021q: TestX\n   1  no reason: TestZ\n"
	if out.String() != want {
		t.Errorf("printed\n%swant\n%s", out.String(), want)
	}
	if err := os.WriteFile(file, []byte("FAIL a [build failed]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{file}, &out); err == nil {
		t.Error("what is no JSON is read")
	}
	if err := os.WriteFile(file, []byte(`{"Action":"skip","Package":"b","Test":"TestZ"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{file}, &out); err == nil {
		t.Error("that no test ran is no error")
	}
	if err := run(nil, &out); err == nil {
		t.Error("no file is read")
	}
}
