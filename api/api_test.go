package api

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

const goodMachine = `{"apiVersion":"rackweft/v1alpha1","kind":"Machine","metadata":{"name":"r1u07"},
"spec":{"zone":"yellow","profile":"worker","links":[
 {"name":"pxe0","mac":"52-54-00-01-07-00","subnet":"pxe"},
 {"name":"bond0","bond":{"mode":"802.3ad","members":["52:54:00:01:07:01","5254.0001.0702"]}},
 {"name":"prod","vlan":{"link":"bond0","id":208},"subnet":"yellow-prod","addresses":["198.18.8.7"]}],
 "bmc":{"address":"https://198.18.0.7","credentials":"r1-bmc"}}}`

func TestDecodeMachine(t *testing.T) {
	o, err := DecodeObject([]byte(goodMachine))
	if err != nil {
		t.Fatal(err)
	}
	m := o.(*Machine)
	if e := m.Validate(); len(e) != 0 {
		t.Fatal(e)
	}
	if got := m.MACs(); len(got) != 3 || got[0] != "52:54:00:01:07:00" || got[2] != "52:54:00:01:07:02" {
		t.Errorf("MACs = %v", got)
	}
	if m.Spec.State != StateActive || m.Spec.BMC.Protocol != "redfish" {
		t.Errorf("defaults not set: %+v", m.Spec)
	}
	raw, err := Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	again, err := DecodeObject(raw)
	if err != nil {
		t.Fatal(err)
	}
	raw2, _ := Encode(again)
	if string(raw) != string(raw2) {
		t.Errorf("encoding is not stable:\n%s\n%s", raw, raw2)
	}
}

// TestRefusals gives each fault that a person can make and the place and words
// that the error must have.
func TestRefusals(t *testing.T) {
	for _, c := range []struct{ name, old, new, pointer, words string }{
		{"unknown field", `"zone":"yellow"`, `"zome":"yellow"`, "/spec/zome", "want one of zone"},
		{"unknown nested field", `"name":"pxe0"`, `"nam":"pxe0"`, "/spec/links/0/nam", "unknown field"},
		{"wrong type", `"zone":"yellow"`, `"zone":7`, "/spec/zone", "a number is not text"},
		{"bad MAC", `52-54-00-01-07-00`, `52-54-00`, "/spec/links/0/mac", "invalid MAC address"},
		{"unquoted digits", `"52-54-00-01-07-00"`, `7`, "/spec/links/0/mac", "put it in quotes"},
		{"bad address", `198.18.8.7`, `198.18.8`, "/spec/links/2/addresses/0", "198.18.8"},
		{"unknown kind", `"kind":"Machine"`, `"kind":"Server"`, "/kind", "Machine"},
		{"unknown version", `rackweft/v1alpha1`, `rackweft/v9`, "/apiVersion", "rackweft/v1alpha1"},
		{"duplicate key", `"zone":"yellow"`, `"zone":"yellow","zone":"red"`, "/spec/zone", "duplicate"},
		{"cut short", `}}}`, `}}`, "", "not JSON"},
		{"duplicate MAC", `5254.0001.0702`, `52:54:00:01:07:00`, "/spec/links/1/bond/members/1", "/spec/links/0/mac"},
		{"bad name", `"name":"r1u07"`, `"name":"R1_U07"`, "/metadata/name", "RFC 1123"},
		{"http BMC", `https://198.18.0.7`, `http://198.18.0.7`, "/spec/bmc/address", "https://"},
		{"vlan on nothing", `"link":"bond0"`, `"link":"bond9"`, "/spec/links/2/vlan/link", "bond9"},
		{"two kinds of link", `"vlan":{`, `"mac":"52:54:00:01:07:09","vlan":{`, "/spec/links/2", "exactly one"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(goodMachine, c.old, c.new, 1)
			if text == goodMachine {
				t.Fatal("the fault was not put in")
			}
			got := decodeAndValidate(text)
			for _, f := range got {
				if f.Pointer == c.pointer && strings.Contains(f.Message, c.words) {
					return
				}
			}
			t.Errorf("got %v, want %s: …%s…", got, c.pointer, c.words)
		})
	}
}

func TestBMCOverIPMI(t *testing.T) {
	for text, pointer := range map[string]string{
		`"address":"ipmi://198.18.0.7","protocol":"ipmi"`:                                                "",
		`"address":"ipmi://[fd00::7]:6230","protocol":"ipmi","ipmi":{"cipherSuite":3}`:                   "",
		`"address":"https://198.18.0.7","fallback":"ipmi","ipmi":{"privilege":"operator"}`:               "",
		`"address":"https://198.18.0.7","protocol":"ipmi"`:                                               "/spec/bmc/address",
		`"address":"ipmi://198.18.0.7"`:                                                                  "/spec/bmc/address",
		`"address":"ipmi://:623","protocol":"ipmi"`:                                                      "/spec/bmc/address",
		`"address":"ipmi://198.18.0.7","protocol":"ipmi","ipmi":{"cipherSuite":0}`:                       "/spec/bmc/ipmi/cipherSuite",
		`"address":"ipmi://198.18.0.7","protocol":"ipmi","ipmi":{"cipherSuite":2}`:                       "/spec/bmc/ipmi/cipherSuite",
		`"address":"ipmi://198.18.0.7","protocol":"ipmi","ipmi":{"privilege":"user"}`:                    "/spec/bmc/ipmi/privilege",
		`"address":"ipmi://198.18.0.7","protocol":"ipmi","fallback":"ipmi"`:                              "/spec/bmc/fallback",
		`"address":"ipmi://198.18.0.7","protocol":"ipmi","system":"1"`:                                   "/spec/bmc/system",
		`"address":"ipmi://198.18.0.7","protocol":"ipmi","tls":{"fingerprint":"sha256:` + zeros64 + `"}`: "/spec/bmc/tls/fingerprint",
		`"address":"https://198.18.0.7","fallback":"ipmi","system":"1"`:                                  "/spec/bmc/system",
		`"address":"https://198.18.0.7","fallback":"ssh"`:                                                "/spec/bmc/fallback",
		`"address":"https://198.18.0.7","console":"attached"`:                                            "",
		`"address":"https://198.18.0.7","console":"never"`:                                               "/spec/bmc/console",
		`"address":"https://198.18.0.7","ipmi":{}`:                                                       "/spec/bmc/ipmi",
	} {
		got := decodeAndValidate(strings.Replace(goodMachine, `"address":"https://198.18.0.7"`, text, 1))
		if pointer == "" && len(got) > 0 || pointer != "" && (len(got) != 1 || got[0].Pointer != pointer) {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// TestIPMIDefaults: a person has to write any cipher suite but 17.
func TestIPMIDefaults(t *testing.T) {
	o, err := DecodeObject([]byte(strings.Replace(goodMachine, `"credentials"`, `"fallback":"ipmi","credentials"`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	if i := o.(*Machine).Spec.BMC.IPMI; i == nil || *i.CipherSuite != CipherSuiteSHA256 || i.Privilege != "administrator" {
		t.Errorf("defaults are %+v", i)
	}
}

var zeros64 = strings.Repeat("0", 64)

func decodeAndValidate(text string) FieldErrors {
	o, err := DecodeObject([]byte(text))
	var f FieldError
	if errors.As(err, &f) {
		return FieldErrors{f}
	}
	return o.Validate()
}

func TestRates(t *testing.T) {
	for text, pointer := range map[string]string{
		`"limits":{"inbound":"100M","outbound":"10M"},"guestLimits":{"outbound":"1M"}`: "",
		`"limits":{"inbound":"0"}`:        "",
		`"limits":{"inbound":"10"}`:       "/spec/limits/inbound",
		`"guestLimits":{"outbound":"-1"}`: "/spec/guestLimits/outbound",
		`"guestLimits":{"outbound":"1x"}`: "/spec/guestLimits/outbound",
	} {
		got := decodeAndValidate(`{"apiVersion":"rackweft/v1alpha1","kind":"Network","metadata":{"name":"n"},"spec":{"zone":"yellow","cidrs":["10.5.0.0/16"],` + text + `}}`)
		if pointer == "" && len(got) > 0 || pointer != "" && (len(got) != 1 || got[0].Pointer != pointer) {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestDiskLimits(t *testing.T) {
	for text, pointer := range map[string]string{
		`"diskBytes":"100Mi","diskOperations":500`: "",
		`"diskBytes":"2P"`:                         "/spec/limits/diskBytes",
		`"diskBytes":"-1"`:                         "/spec/limits/diskBytes",
		`"diskOperations":-1`:                      "/spec/limits/diskOperations",
	} {
		o, err := DecodeObject([]byte(`{"apiVersion":"rackweft/v1alpha1","kind":"Guest","metadata":{"name":"g"},"spec":{"network":"n","cpus":1,"memory":"1Gi","image":"i","limits":{` + text + `}}}`))
		if err != nil {
			t.Fatal(err)
		}
		o.SetDefaults()
		got := o.Validate()
		if pointer == "" && len(got) > 0 || pointer != "" && (len(got) != 1 || got[0].Pointer != pointer) {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestPeering(t *testing.T) {
	for text, pointer := range map[string]string{
		`"peering":{"asn":64512,"prefixes":["10.244.0.0/16"],"maxPrefixes":64,"secret":"key"}`:   "",
		`"peering":{"asn":64512,"prefixes":["10.244.0.0/16"]},"direct":true`:                     "/spec/peering",
		`"peering":{"asn":64512,"prefixes":["10.244.0.0/16"],"advertise":true}`:                  "/spec/peering/advertise",
		`"peering":{"asn":64512,"prefixes":["10.244.0.0/16"],"advertise":true},"advertise":true`: "",
		`"peering":{"asn":64512}`:                                                  "/spec/peering/prefixes",
		`"peering":{"prefixes":["10.244.0.0/16"]}`:                                 "/spec/peering/asn",
		`"peering":{"asn":64512,"prefixes":["0.0.0.0/0"]}`:                         "/spec/peering/prefixes/0",
		`"peering":{"asn":64512,"prefixes":["10.244.0.0/16","10.5.9.0/24"]}`:       "/spec/peering/prefixes/1",
		`"peering":{"asn":64512,"prefixes":["fd00:244::/48"]}`:                     "/spec/peering/prefixes/0",
		`"peering":{"asn":64512,"prefixes":["10.244.0.1/16"]}`:                     "/spec/peering/prefixes/0",
		`"peering":{"asn":64512,"prefixes":["10.244.0.0/16"],"maxPrefixes":10001}`: "/spec/peering/maxPrefixes",
		`"peering":{"asn":64512,"prefixes":["10.244.0.0/16"],"secret":"A"}`:        "/spec/peering/secret",
	} {
		got := decodeAndValidate(`{"apiVersion":"rackweft/v1alpha1","kind":"Network","metadata":{"name":"n"},"spec":{"zone":"yellow","cidrs":["10.5.0.0/16"],` + text + `}}`)
		wrong := slices.ContainsFunc(got, func(e FieldError) bool { return e.Pointer != pointer })
		if pointer == "" && len(got) > 0 || pointer != "" && (len(got) == 0 || wrong) {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestEveryKindHasItsName(t *testing.T) {
	for _, k := range Kinds() {
		o := k.New()
		o.SetDefaults()
		if o.Type().Kind != k.Name || o.Type().APIVersion != Version {
			t.Errorf("%s: default TypeMeta is %+v", k.Name, *o.Type())
		}
		if KindOf(o).Name != k.Name {
			t.Errorf("%s: KindOf says %s", k.Name, KindOf(o).Name)
		}
		o.Meta().Name = "a"
		for _, f := range o.Validate() {
			if f.Pointer == "/kind" || f.Pointer == "/apiVersion" {
				t.Errorf("%s: %v", k.Name, f)
			}
		}
	}
}

func TestValues(t *testing.T) {
	var v struct {
		D Duration
		Q Quantity
		R AddrRange
		V VNIRange
		S SHA256
	}
	text := `{"D":"1h30m0s","Q":"4Gi","R":"198.18.0.100-198.18.0.199","V":"10000-20000","S":"` + strings.Repeat("ab", 32) + `"}`
	if err := DecodeStrict([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	back, err := json.Marshal(v)
	if err != nil || string(back) != text {
		t.Errorf("%s %v", back, err)
	}
	if v.Q.Value() != 4<<30 {
		t.Errorf("4Gi = %d", v.Q.Value())
	}
	for _, bad := range []string{`{"D":"1 hour"}`, `{"Q":"4GB!"}`, `{"R":"198.18.0.9-198.18.0.1"}`, `{"R":"198.18.0.1"}`, `{"V":"0-5"}`, `{"V":"1-99999999"}`, `{"V":"1-5x"}`, `{"S":"abc"}`} {
		if err := DecodeStrict([]byte(bad), &v); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

func FuzzDecodeObject(f *testing.F) {
	f.Add([]byte(goodMachine))
	f.Add([]byte(`{"kind":"Subnet","spec":{"prefixes":["198.18.0.0/24"],"range":"198.18.0.1-198.18.0.9"}}`))
	f.Add([]byte(`{"kind":"Guest","spec":{"memory":"4Gi"}}`))
	f.Add([]byte(`{"kind":"HostSpec","parts":{"bgp":{},"network/a":{}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := DecodeObject(data)
		if err != nil {
			return
		}
		o.Validate()
		raw, err := Encode(o)
		if err != nil {
			t.Fatalf("decoded, but does not encode: %v", err)
		}
		if _, err := DecodeObject(raw); err != nil {
			t.Fatalf("encoded, but does not decode: %v\n%s", err, raw)
		}
	})
}

func TestSkew(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "is right", -time.Second: "is right", 90 * time.Second: "is 1m30s ahead", -4976*time.Hour - time.Minute: "is 207 days behind",
	} {
		if got := Skew(d); got != want {
			t.Errorf("Skew(%s) = %q, want %q", d, got, want)
		}
	}
}

// TestNetworkIPv6 gives a Network an IPv6 CIDR.
func TestNetworkIPv6(t *testing.T) {
	for _, c := range []struct {
		cidrs   string
		length  int // as set; 0 for the default
		want    int
		pointer string // of the fault, "" for none
	}{
		{"10.5.0.0/16", 0, 0, ""},
		{"10.5.0.0/16 fd00::/48", 0, 64, ""},
		{"10.5.0.0/16 fd00::/62", 0, 64, ""},
		{"10.5.0.0/16 fd00::/63", 0, 71, ""},
		{"10.5.0.0/16 fd00::/64", 0, 72, ""},
		{"10.5.0.0/16 fd00::/120", 0, 126, ""},
		{"10.5.0.0/16 fd00::/126", 0, 126, "/spec/hostPrefix6"},
		{"10.5.0.0/16 fd00::/48", 80, 80, ""},
		{"10.5.0.0/16 fd00::/48", 49, 49, "/spec/hostPrefix6"},
		{"10.5.0.0/16 fd00::/48", 127, 127, "/spec/hostPrefix6"},
		{"10.5.0.0/16", 64, 64, "/spec/hostPrefix6"},
		{"fd00::/48 10.5.0.0/16 fd01::/48", 0, 64, "/spec/cidrs/2"},
	} {
		n := &Network{Spec: NetworkSpec{Zone: "yellow", HostPrefix6: c.length}}
		n.Metadata.Name = "net"
		for _, text := range strings.Fields(c.cidrs) {
			n.Spec.CIDRs = append(n.Spec.CIDRs, netip.MustParsePrefix(text))
		}
		n.SetDefaults()
		faults := n.Validate()
		if n.Spec.HostPrefix6 != c.want {
			t.Errorf("%s: /%d, want /%d", c.cidrs, n.Spec.HostPrefix6, c.want)
		}
		if c.pointer == "" && len(faults) > 0 || c.pointer != "" && (len(faults) != 1 || faults[0].Pointer != c.pointer) {
			t.Errorf("%s, /%d: %v", c.cidrs, c.length, faults)
		}
	}
}

func TestNetworkAllow(t *testing.T) {
	n := &Network{Spec: NetworkSpec{Zone: "yellow", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}, Allow: []string{"a", "net", "b", "a"}}}
	n.Metadata.Name = "net"
	n.SetDefaults()
	faults := n.Validate()
	if len(faults) != 2 || faults[0].Pointer != "/spec/allow/1" || faults[1].Pointer != "/spec/allow/3" {
		t.Errorf("%v", faults)
	}
}
