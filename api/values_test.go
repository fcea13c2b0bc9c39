package api

import (
	"crypto/ecdh"
	"encoding"
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// Texts of which each would take for ever, or a value that is not the one that
// is written.
func TestQuantityIsBounded(t *testing.T) {
	for _, text := range []string{"1e-999999999", "1e999999999", "1E-999999999", "1e31", "1e-31", "1e+-5", "1e99999999999999999999",
		strings.Repeat("1", 21), strings.Repeat("0", 1<<20), "9223372036854775807", "-9223372036854775808", "8Ei", "10e30", "9e18Ei",
		"12345678901234567.1", "", "1 Gi", "0x10"} {
		if q, err := ParseQuantity(text); err == nil {
			t.Errorf("%.40q is read as %s", text, q)
		}
	}
	for text, want := range map[string]int64{"0": 0, "4Gi": 4 << 30, "500M": 500e6, "250m": 1, "1e3": 1000, "1E": 1e18, "7Ei": 7 << 60, "1e-30": 1, "-1": -1, "1.5": 2, "-1e-10": 0} {
		if q, err := ParseQuantity(text); err != nil || q.Value() != want {
			t.Errorf("%s is read as %d (%v), want %d", text, q.Value(), err, want)
		}
	}
}

// TestListsAreBounded gives lists and maps that validation would compare with
// themselves.
func TestListsAreBounded(t *testing.T) {
	labels := make([]string, maxEntries+1)
	for i := range labels {
		labels[i] = fmt.Sprintf(`"l%d":"x"`, i)
	}
	many := strings.Repeat(`"10.0.0.0/8",`, 1<<17) + `"10.0.0.0/8"`
	for pointer, text := range map[string]string{
		"/spec/prefixes":   `{"kind":"Zone","metadata":{"name":"z"},"spec":{"asn":64512,"prefixes":[` + many + `]}}`,
		"/metadata/labels": `{"kind":"Zone","metadata":{"name":"z","labels":{` + strings.Join(labels, ",") + `}}}`,
	} {
		got := decodeAndValidate(text)
		if len(got) != 1 || got[0].Pointer != pointer || !strings.Contains(got[0].Message, "more than 1024") {
			t.Errorf("%s: %.200s", pointer, got)
		}
	}
	most := strings.Repeat(`"10.0.0.0/8",`, 1023) + `"10.0.0.0/8"`
	got := decodeAndValidate(`{"apiVersion":"rackweft/v1alpha1","kind":"Zone","metadata":{"name":"z"},"spec":{"asn":64512,"prefixes":[` + most + `]}}`)
	if len(got) != maxFaults {
		t.Errorf("of half a million faults %d are named", len(got))
	}
}

func TestCPUSetIsBounded(t *testing.T) {
	if _, err := ParseCPUSet(strings.Repeat("0-8191,", 1<<17) + "0"); err == nil {
		t.Error("a list of a thousand million processors is read")
	}
	if got, err := ParseCPUSet("8,2-5,3"); err != nil || !slices.Equal(got, []int{2, 3, 4, 5, 8}) {
		t.Errorf("%v, %v", got, err)
	}
}

// An address has one spelling, wherever an object has it.
func TestAddressesHaveOneSpelling(t *testing.T) {
	for text, pointer := range map[string]string{
		`"links":[{"name":"e","mac":"52:54:00:00:00:01","addresses":["::ffff:198.18.0.7"]}]`: "/spec/links/0/addresses/0",
		`"links":[{"name":"e","mac":"52:54:00:00:00:01","addresses":["fe80::1%e"]}]`:         "/spec/links/0/addresses/0",
		`"links":[{"name":"e","mac":"52:54:00:00:00:01","addresses":[7]}]`:                   "/spec/links/0/addresses/0",
		`"loopbacks":["::ffff:198.18.0.7"]`:                                                  "/spec/loopbacks/0",
	} {
		got := decodeAndValidate(`{"apiVersion":"rackweft/v1alpha1","kind":"Machine","metadata":{"name":"m"},"spec":{` + text + `}}`)
		if len(got) != 1 || got[0].Pointer != pointer {
			t.Errorf("%s: %v", text, got)
		}
	}
	for text, pointer := range map[string]string{
		`"prefixes":["::ffff:10.0.0.0/104"]`:                                        "/spec/prefixes/0",
		`"prefixes":["10.0.0.0/8"],"bgp":{"bmp":["[::ffff:10.0.0.1]:11019"]}`:       "/spec/bgp/bmp/0",
		`"uplinks":[{"address":"::ffff:10.0.0.1","asn":64513}]`:                     "/spec/uplinks/0/address",
		`"prefixes":["10.0.0.0/8"],"services":[{"name":"s","addresses":["1.2.3"]}]`: "/spec/services/0/addresses/0",
	} {
		got := decodeAndValidate(`{"apiVersion":"rackweft/v1alpha1","kind":"Zone","metadata":{"name":"m"},"spec":{"asn":64512,` + text + `}}`)
		if len(got) != 1 || got[0].Pointer != pointer {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestFingerprintHasOneSpelling(t *testing.T) {
	want := Fingerprint("sha256:" + strings.Repeat("ab", 32))
	for _, text := range []string{string(want), "sha256:" + strings.Repeat("AB", 32), "sha256:" + strings.TrimSuffix(strings.Repeat("Ab:", 32), ":")} {
		var f Fingerprint
		if err := f.UnmarshalText([]byte(text)); err != nil || f != want {
			t.Errorf("%s is read as %s (%v)", text, f, err)
		}
	}
	for _, text := range []string{"sha256:ab", strings.Repeat("ab", 32), "sha1:" + strings.Repeat("ab", 32)} {
		if err := new(Fingerprint).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%s is read", text)
		}
	}
}

func TestHostKeyHasOneSpelling(t *testing.T) {
	const want = "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8"
	var k HostKey
	if err := k.UnmarshalText([]byte(want)); err != nil || k != want {
		t.Errorf("%s is read as %s (%v)", want, k, err)
	}
	for _, text := range []string{want + "=", "sha256:" + want[7:], want[7:], want[:40], want[:len(want)-1] + "9", "SHA256:\n" + want[7:], "MD5:16:27:ac"} {
		if err := new(HostKey).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is read", text)
		}
	}
}

// A host must not claim another's WireGuard key by another spelling of it.
func TestWireGuardKeyHasOneSpelling(t *testing.T) {
	raw := slices.Repeat([]byte{7}, 32)
	key := base64.StdEncoding.EncodeToString(raw)
	if err := ValidateWireGuardKey(key); err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	encode := func(change func(b []byte)) string {
		b := slices.Clone(raw)
		change(b)
		return base64.StdEncoding.EncodeToString(b)
	}
	for name, text := range map[string]string{
		"stray bits":          key[:42] + "d=",
		"a line break inside": key[:20] + "\n" + key[20:],
		"a line break behind": key + "\n",
		"the top bit":         encode(func(b []byte) { b[31] |= 0x80 }),
		"2^255-19 plus 7":     encode(func(b []byte) { clear(b); fill(b); b[0] = 0xed + 7; b[31] = 0x7f }),
		"zero":                encode(func(b []byte) { clear(b) }),
		"one, of low order":   encode(func(b []byte) { clear(b); b[0] = 1 }),
		"short":               "c2hvcnQ=",
		"none":                "",
	} {
		if err := ValidateWireGuardKey(text); err == nil {
			t.Errorf("%s: %q is a key", name, text)
		}
	}
	if raw, err := base64.StdEncoding.DecodeString(key[:42] + "d="); err != nil || !slices.Equal(raw, slices.Repeat([]byte{7}, 32)) {
		t.Fatalf("the stray bits are none: %v, %v", raw, err)
	}
}

func fill(b []byte) {
	for i := range b {
		b[i] = 0xff
	}
}

// scalar is one that is read from and written as text.
type scalar[T any] interface {
	*T
	encoding.TextUnmarshaler
}

// canonical holds a scalar to one spelling: what is written of a value is read
// as the same, written the same way, and bounded.
func canonical[T comparable, P scalar[T]](t *testing.T, in string) (T, bool) {
	t.Helper()
	var v, again T
	if err := P(&v).UnmarshalText([]byte(in)); err != nil {
		if len(err.Error()) > 512 {
			t.Errorf("a message of %d bytes", len(err.Error()))
		}
		return v, false
	}
	out, err := any(v).(encoding.TextMarshaler).MarshalText()
	if err != nil || len(out) > 160 {
		t.Fatalf("%q is written as %q (%v)", in, out, err)
	}
	if err := P(&again).UnmarshalText(out); err != nil || again != v {
		t.Fatalf("%q is written as %q, which is read as %v, not %v (%v)", in, out, again, v, err)
	}
	return v, true
}

func FuzzMAC(f *testing.F) {
	for _, s := range []string{"52:54:00:01:07:00", "52-54-00-01-07-00", "5254.0001.0700", "", "52:54:00:01:07", "00:00:5e:00:53:01:02:03"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if m, ok := canonical[MAC](t, s); ok && (len(m.HardwareAddr()) != 6 || m.HardwareAddr().String() != string(m)) {
			t.Errorf("%q is read as %q", s, m)
		}
	})
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"30s", "1h30m", "-1s", "2562047h47m16.854775807s", "1.5h", "1", "", "1d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { canonical[Duration](t, s) })
}

func FuzzQuantity(f *testing.F) {
	for _, s := range []string{"4Gi", "500M", "250m", "1e3", "1e-999999999", "1E-30", "1.5Ki", "-8Ei", "9223372036854775806", "0.000000001", "1e-9", "-1E-10", "999999999999999999n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := ParseQuantity(s)
		if err != nil {
			return
		}
		again, err := ParseQuantity(q.String())
		if err != nil || again.q.Cmp(q.q) != 0 || again.String() != q.String() {
			t.Fatalf("%q is written as %q, which is read as %q (%v)", s, q, again, err)
		}
		v := q.Value()
		if v == math.MaxInt64 || v == math.MinInt64 || v > 0 && q.q.Sign() <= 0 || v < 0 && q.q.Sign() >= 0 {
			t.Errorf("%q has the value %d", s, v)
		}
	})
}

func FuzzSHA256(f *testing.F) {
	f.Add("sha256:" + strings.Repeat("ab", 32))
	f.Add(strings.Repeat("AB", 32))
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if v, ok := canonical[SHA256](t, s); ok && (len(v) != 64 || strings.ToLower(string(v)) != string(v)) {
			t.Errorf("%q is read as %q", s, v)
		}
	})
}

func FuzzFingerprint(f *testing.F) {
	f.Add("sha256:" + strings.Repeat("ab", 32))
	f.Add("sha256:" + strings.Repeat("AB:", 32))
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if v, ok := canonical[Fingerprint](t, s); ok && v != "" && len(v) != len("sha256:")+64 {
			t.Errorf("%q is read as %q", s, v)
		}
	})
}

func FuzzHostKey(f *testing.F) {
	f.Add("SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8")
	f.Add("SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8=")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if v, ok := canonical[HostKey](t, s); ok && string(v) != s {
			t.Errorf("%q is read as %q", s, v)
		}
	})
}

func FuzzValidateWireGuardKey(f *testing.F) {
	f.Add("")
	f.Add(base64.StdEncoding.EncodeToString(slices.Repeat([]byte{7}, 32)))
	f.Add(base64.StdEncoding.EncodeToString(slices.Repeat([]byte{255}, 32)))
	f.Fuzz(func(t *testing.T, s string) {
		if ValidateWireGuardKey(s) != nil {
			return
		}
		raw, err := base64.StdEncoding.Strict().DecodeString(s)
		if err != nil || base64.StdEncoding.EncodeToString(raw) != s || raw[31]&0x80 != 0 {
			t.Fatalf("%q is a key (%v)", s, err)
		}
		if _, err := ecdh.X25519().NewPublicKey(raw); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	})
}

func FuzzParseAddr(f *testing.F) {
	for _, s := range []string{"198.18.0.7", "2001:db8::7", "::ffff:198.18.0.7", "fe80::1%eth0", "0:0:0:0:0:0:0:1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if a, err := ParseAddr(s); err == nil {
			if again, err := ParseAddr(a.String()); err != nil || again != a || a.Is4In6() || a.Zone() != "" {
				t.Errorf("%q is read as %s, which is read as %s (%v)", s, a, again, err)
			}
		}
		if p, err := ParsePrefix(s); err == nil {
			if again, err := ParsePrefix(p.String()); err != nil || again != p || p.Addr().Is4In6() {
				t.Errorf("%q is read as %s, which is read as %s (%v)", s, p, again, err)
			}
		}
		if a, err := ParseAddrPort(s); err == nil {
			if again, err := ParseAddrPort(a.String()); err != nil || again != a || a.Addr().Is4In6() || a.Addr().Zone() != "" {
				t.Errorf("%q is read as %s, which is read as %s (%v)", s, a, again, err)
			}
		}
	})
}

func FuzzAddrRange(f *testing.F) {
	for _, s := range []string{"198.18.0.100-198.18.0.199", "198.18.0.1 - 198.18.0.9", "fd00::1-fd00::9", "::ffff:1.2.3.4-::ffff:1.2.3.9", "fe80::1%a-fe80::2%a", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if r, ok := canonical[AddrRange](t, s); ok && !r.IsZero() && (!r.Contains(r.First) || !r.Contains(r.Last)) {
			t.Errorf("%q is read as %v", s, r)
		}
	})
}

func FuzzVNIRange(f *testing.F) {
	for _, s := range []string{"10000-20000", "1-16777215", "0-5", " 1-2", "+1-2", "1-2x", "1-99999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if r, ok := canonical[VNIRange](t, s); ok && (r.Low < 1 || r.High < r.Low || r.High >= 1<<24) {
			t.Errorf("%q is read as %v", s, r)
		}
	})
}

func FuzzParseCPUSet(f *testing.F) {
	for _, s := range []string{"2-5,8", "", "0-8191", "5-2", strings.Repeat("0-8191,", 100)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ParseCPUSet(s)
		if err != nil {
			return
		}
		if len(list) > maxCPU+1 || !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
			t.Errorf("%q is read as %v", s, list)
		}
	})
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"r1u07", "R1", "-a", "a-", strings.Repeat("a", 64), "", "a\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if ValidateName(s) == nil && (len(s) > 63 || strings.Trim(s, "-") != s || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "") {
			t.Errorf("%q is a name", s)
		}
		if ValidateFileName(s) == nil && (strings.ContainsAny(s, "/\x00\n ") || strings.Trim(s, ".") == "") {
			t.Errorf("%q is a file name", s)
		}
	})
}

func FuzzListenPort(f *testing.F) {
	for _, s := range []string{":8080", "198.18.0.1:80", "[fd00::1]:80", ":0", ":99999", "host:80", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if port, err := ListenPort(s); err == nil && (port < 1 || port > 65535) {
			t.Errorf("%q has the port %d", s, port)
		}
	})
}

// Times are read and written by encoding/json; what one side takes the other
// must write.
func FuzzTime(f *testing.F) {
	for _, s := range []string{"2026-11-30T17:00:00Z", "9999-12-31T23:59:59-23:59", "0000-01-01T00:00:00+23:59", "2026-11-30T17:00:00.123456789+01:00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var c Condition
		if DecodeStrict([]byte(`{"type":"Ready","status":"True","time":"`+s+`"}`), &c) != nil {
			return
		}
		raw, err := Encode(c)
		if err != nil {
			t.Fatalf("%q is read, and not written: %v", s, err)
		}
		var again Condition
		if err := DecodeStrict(raw, &again); err != nil || !again.Time.Equal(c.Time) {
			t.Errorf("%q is written as %s, which is read as %s (%v)", s, raw, again.Time.Format(time.RFC3339Nano), err)
		}
	})
}

func TestSecretPermits(t *testing.T) {
	uses := &SecretUses{Layers: []string{"base"}, Guests: []string{"web"}, BMC: []string{"198.18.0.7", "198.18.1.0/24", "fd00::/64", "bmc.dc1.example"}, Uplinks: []string{"yellow"}, Networks: []string{"blue"}}
	for _, c := range []struct {
		use       SecretUse
		uses, old bool // with these uses; with none set
	}{
		{UseLayer("base"), true, false}, {UseLayer("bas"), false, false}, {UseLayer("*"), false, false}, {UseLayer(""), false, false},
		{UseGuest("web"), true, false}, {UseGuest("base"), false, false},
		{UseUplink("yellow"), true, true}, {UseUplink("red"), false, true},
		{UseNetwork("blue"), true, true}, {UseNetwork("yellow"), false, true},
		{UseBMC("https://198.18.0.7"), true, true}, {UseBMC("https://198.18.0.7:8443/"), true, true}, {UseBMC("https://198.18.0.8"), false, true},
		{UseBMC("https://198.18.1.99"), true, true}, {UseBMC("https://[fd00::9]"), true, true}, {UseBMC("https://[fd01::9]"), false, true},
		{UseBMC("https://[::ffff:198.18.1.9]"), true, true}, {UseBMC("https://BMC.dc1.example"), true, true}, {UseBMC("https://bmc.dc1.example.evil.example"), false, true},
		{UseBMC("https://198.18.0.7@evil.example"), false, true}, {UseBMC(":"), false, true}, {UseBMC(""), false, true},
	} {
		for _, with := range []struct {
			uses *SecretUses
			want bool
		}{{uses, c.uses}, {nil, c.old}, {new(SecretUses), false}} {
			s := &Secret{Spec: SecretSpec{Uses: with.uses}}
			s.Metadata.Name = "s"
			if err := s.Permits(c.use); (err == nil) != with.want || err != nil && !strings.Contains(err.Error(), "Secret s is not for "+c.use.String()) {
				t.Errorf("%s with %+v: %v", c.use, with.uses, err)
			}
		}
	}
}

func TestSecretUses(t *testing.T) {
	for text, pointer := range map[string]string{
		`{}`:                                "",
		`{"layers":["base","site"]}`:        "",
		`{"layers":["base","base"]}`:        "/spec/uses/layers/1",
		`{"layers":["*"]}`:                  "/spec/uses/layers/0",
		`{"guests":["*"],"operators":true}`: "",
		`{"networks":["A"]}`:                "/spec/uses/networks/0",
		`{"bmc":["198.18.0.0/24","198.18.0.7","fd00::1","bmc-1.example"]}`: "",
		`{"bmc":["198.18.0.1/24"]}`:                                        "/spec/uses/bmc/0",
		`{"bmc":["https://198.18.0.1"]}`:                                   "/spec/uses/bmc/0",
		`{"bmc":["*"],"operators":true}`:                                   "/spec/uses/bmc/0",
		`{"bmc":["::ffff:198.18.0.0/96"]}`:                                 "/spec/uses/bmc/0",
		`{"machines":["r1"]}`:                                              "/spec/uses/machines",
	} {
		got := decodeAndValidate(`{"apiVersion":"rackweft/v1alpha1","kind":"Secret","metadata":{"name":"s"},"spec":{"data":{"a":"b"},"uses":` + text + `}}`)
		if pointer == "" && len(got) > 0 || pointer != "" && (len(got) != 1 || got[0].Pointer != pointer) {
			t.Errorf("%s: %v", text, got)
		}
	}
}
