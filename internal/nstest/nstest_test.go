package nstest

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestNew(t *testing.T) {
	var name string
	listen := func() error {
		l, err := net.Listen("tcp", "198.18.0.9:0")
		if err != nil {
			return err
		}
		return l.Close()
	}
	t.Run("while it is there", func(t *testing.T) {
		name = New(t)
		IP(t, name, "addr", "add", "198.18.0.9/32", "dev", "lo")
		if err := Within(name, listen); err != nil {
			t.Error(err)
		}
		if err := listen(); err == nil {
			t.Error("the test's own goroutine has the namespace's address")
		}
	})
	if name == "" {
		t.Skip("there was no namespace")
	}
	if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
		t.Errorf("%s is left", name)
	}
	if err := Within(name, listen); err == nil {
		t.Error("a namespace that is gone was entered")
	}
}

func TestEnter(t *testing.T) {
	Enter(t)
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Flags&net.FlagUp == 0 {
		t.Errorf("the namespace has %v, want lo alone, and up", links)
	}
}
