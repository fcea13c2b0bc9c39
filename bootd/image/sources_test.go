package image

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

// TestClosedSources checks where bootd does not connect to by itself.
func TestClosedSources(t *testing.T) {
	s := Sources{Barred: func(host string, a netip.Addr) string {
		if host == "bmc1.example" || netip.MustParsePrefix("198.18.1.0/24").Contains(a) {
			return "a BMC"
		}
		return ""
	}}
	closed := []string{
		"127.0.0.1", "127.255.1.2", "::1", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "0.0.0.0", "0.1.2.3", "::",
		"169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fe80::1", "fe80::1%lo", "fd00:ec2::254", "100.100.100.200", "168.63.129.16",
		"224.0.0.1", "239.1.2.3", "ff02::1", "255.255.255.255", "240.0.0.1", "198.18.1.7", "::ffff:198.18.1.7", "64:ff9b::c612:107",
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		closed = append(closed, a.(*net.IPNet).IP.String())
	}
	for _, text := range closed {
		if err := s.check("mirror.example", netip.AddrPortFrom(netip.MustParseAddr(text), 80)); err == nil {
			t.Errorf("%s is open", text)
		}
	}
	if err := s.check("BMC1.example.", netip.MustParseAddrPort("203.0.113.7:443")); err == nil {
		t.Error("a BMC's name is open")
	}
	for _, text := range []string{"203.0.113.7", "198.18.0.9", "10.1.2.3", "2001:db8::1", "fd12:3456::1", "64:ff9b::cb00:7107"} {
		if err := s.check("mirror.example", netip.AddrPortFrom(netip.MustParseAddr(text), 80)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestAllow(t *testing.T) {
	for _, c := range []struct {
		entry, host, to string
		open            bool
	}{
		{"127.0.0.1", "x", "127.0.0.1:80", true},
		{"127.0.0.1", "x", "127.0.0.2:80", false},
		{"127.0.0.1", "x", "[::ffff:127.0.0.1]:80", true},
		{"127.0.0.1:8000", "x", "127.0.0.1:8000", true},
		{"127.0.0.1:8000", "x", "127.0.0.1:2379", false},
		{"127.0.0.0/8", "x", "127.9.9.9:1", true},
		{"::1", "x", "[::1]:80", true},
		{"[::1]:80", "x", "[::1]:80", true},
		{"[::1]:80", "x", "[::1]:81", false},
		{"fe80::/10", "x", "[fe80::1%eth0]:80", true},
		{"Mirror.example", "mirror.example", "127.0.0.1:80", true},
		{"mirror.example:8080", "MIRROR.example.", "127.0.0.1:8080", true},
		{"mirror.example:8080", "mirror.example", "127.0.0.1:80", false},
		{"mirror.example", "other.example", "127.0.0.1:80", false},
		{"mirror.example", "x.mirror.example", "127.0.0.1:80", false},
	} {
		allow, err := ParseAllow([]string{c.entry})
		if err != nil {
			t.Fatal(err)
		}
		if err := (Sources{Allow: allow}).check(c.host, netip.MustParseAddrPort(c.to)); (err == nil) != c.open {
			t.Errorf("%s, host %s, %s: %v", c.entry, c.host, c.to, err)
		}
	}
	for _, bad := range []string{"", ".", "http://x", "x/8", "a b", ":80", "x:0", "x:http", "x:99999", "1.2.3.4/99"} {
		if _, err := ParseAllow([]string{bad}); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

func FuzzParseAllow(f *testing.F) {
	for _, seed := range []string{"127.0.0.1", "[::1]:80", "198.18.0.0/24", "mirror.example:8080", "::", "[", "a:b:c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		all, err := ParseAllow([]string{text})
		if err == nil && !all[0].Prefix.IsValid() && all[0].Name == "" {
			t.Errorf("%q opens %+v", text, all)
		}
	})
}

// TestNothingIsTold lets an Image name what only bootd reaches, by every way, and looks at what is shown.
func TestNothingIsTold(t *testing.T) {
	const password = "inner-secret"
	var inner atomic.Int64
	// The inner service listens where nothing is allowed: 127.0.0.2.
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	secret := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { inner.Add(1); _, _ = w.Write([]byte(password)) }))
	_ = secret.Listener.Close()
	secret.Listener = l
	secret.Start()
	defer secret.Close()
	port := l.Addr().(*net.TCPAddr).Port
	shut, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + shut.Addr().String()
	_ = shut.Close()

	outer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, secret.URL, http.StatusFound)
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/file":
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		case "/other":
			_, _ = w.Write([]byte("another content"))
		default:
			http.Error(w, password, http.StatusTeapot)
		}
	}))
	defer outer.Close()
	t.Setenv("HTTP_PROXY", secret.URL)
	t.Setenv("http_proxy", secret.URL)

	messages := map[string]string{}
	for name, source := range map[string]string{
		"inner": secret.URL, "by another spelling": "http://[::ffff:127.0.0.2]:" + strconv.Itoa(port), "shut": nobody, "no name": "http://nothing.invalid/",
		"redirect": outer.URL + "/redirect", "loop": outer.URL + "/loop", "file": outer.URL + "/file", "teapot": outer.URL + "/", "another content": outer.URL + "/other",
		"metadata": "http://169.254.169.254/latest/meta-data/",
	} {
		b := newBench(t, 0)
		b.Create(&api.Image{Base: testsite.Named("img"), Spec: api.ImageSpec{Version: "1", Files: map[string]api.ImageFile{"kernel": {Source: source, SHA256: digest("wanted")}}}})
		got := b.condition("img")
		if got.Reason != "FetchFailed" || strings.Contains(got.Message, password) || strings.Contains(got.Message, string(digest(password))) {
			t.Errorf("%s: %+v", name, got)
		}
		messages[strings.Replace(got.Message, source, "URL", 1)] = name
	}
	if len(messages) != 1 {
		t.Errorf("the messages differ: %v", messages)
	}
	if n := inner.Load(); n != 0 {
		t.Errorf("the inner service was asked %d times", n)
	}

	// What was not the digest is no blob, either.
	b := newBench(t, 0)
	b.Create(&api.Image{Base: testsite.Named("img"), Spec: api.ImageSpec{Version: "1", Files: map[string]api.ImageFile{"kernel": {Source: outer.URL + "/other", SHA256: digest("wanted")}}}})
	b.condition("img")
	if held, err := b.blobs.List(); err != nil || len(held) != 0 {
		t.Errorf("blobs: %v, %v", held, err)
	}
}

// TestFailureIsWithheld: a port that refuses at once looks as one that is silent.
func TestFailureIsWithheld(t *testing.T) {
	b := newBench(t, 0)
	b.c.Withhold = time.Hour
	b.Create(&api.Image{Base: testsite.Named("img"), Spec: api.ImageSpec{Version: "1", Files: map[string]api.ImageFile{"kernel": {Source: "http://127.0.0.1:1/x", SHA256: digest("wanted")}}}})
	for range 2 {
		if got := b.condition("img"); got.Reason != "Fetching" || got.Status != api.False {
			t.Errorf("%+v", got)
		}
	}
}

func TestTooMuch(t *testing.T) {
	alive := 0
	p := &progress{r: strings.NewReader(strings.Repeat("x", 5*stride)), left: 4 * stride, alive: func() { alive++ }}
	buf := make([]byte, stride/2)
	var err error
	for err == nil {
		_, err = p.Read(buf)
	}
	if !strings.Contains(err.Error(), "more than") || alive != 4 {
		t.Errorf("%v, alive %d times", err, alive)
	}
}
