package store

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"
)

func TestParseFlannelSubnet(t *testing.T) {
	for in, want := range map[string]string{
		"10.5.3.0-24": "10.5.3.0/24", "10.5.4.8-31": "10.5.4.8/31", "0.0.0.0-0": "0.0.0.0/0",
		"10.5.3.0-24&fd00::-64": "10.5.3.0/24",
		// What flanneld cannot parse either, or would take for something else.
		"10.5.3.9-32": "", "10.5.3.9-24": "", "10.5.3.0-": "", "10.5.3.0": "", "fd00::-64": "", "10.5.3-24": "", "": "",
	} {
		p, ok := ParseFlannelSubnet(in)
		if ok != (want != "") || ok && p.String() != want {
			t.Errorf("%q is %v %v, want %q", in, p, ok, want)
		}
	}
}

func FuzzParseFlannelSubnet(f *testing.F) {
	f.Add("10.5.3.0-24")
	f.Add("10.5.3.9-32&fd00::-64")
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := ParseFlannelSubnet(s)
		if ok && (!p.IsValid() || !p.Addr().Is4() || p.Bits() > 31 || p != p.Masked()) {
			t.Errorf("%q is %v", s, p)
		}
	})
}

// TestWriteFlannel makes all changes or none, and tells them to a follower at once.
func TestWriteFlannel(t *testing.T) {
	s := open(t, Config{})
	subnet := netip.MustParsePrefix("10.5.1.0/24")
	lease := FlannelID{Network: "net", Kind: FlannelSubnet, Subnet: subnet}
	host := FlannelID{Network: "net", Kind: FlannelHost, Subnet: subnet}
	batches := make(chan FlannelBatch, 8)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Flannel.Follow(ctx, func(b FlannelBatch) { batches <- b }) }()
	if b := <-batches; !b.Snapshot || len(b.Keys) != 0 {
		t.Fatalf("%+v", b)
	}
	// A flanneld with the default prefix, and poison: neither is a key of a Network.
	for _, k := range []string{"config", "subnets/10.9.1.0-24", "net/subnets/10.5.9.9-32", "net/subnets/x/y", "net/else"} {
		if _, err := s.Client().Put(ctx, FlannelPrefix+k, "x"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Flannel.Write(ctx, FlannelWrite{FlannelID: lease, Value: []byte("a")}, FlannelWrite{FlannelID: host, Value: []byte("b")}); err != nil {
		t.Fatal(err)
	}
	b := <-batches
	if b.Snapshot || len(b.Keys) != 2 || b.Keys[0].Revision != b.Keys[1].Revision || b.Keys[0].TTL {
		t.Fatalf("%+v", b)
	}
	at := b.Keys[0].Revision
	err := s.Flannel.Write(ctx, FlannelWrite{FlannelID: lease, At: at}, FlannelWrite{FlannelID: host, At: at - 1})
	if keys, _ := s.Flannel.Read(ctx, "net"); !errors.Is(err, ErrConflict) || len(keys) != 2 {
		t.Errorf("%v, and %+v stand", err, keys)
	}
	if err := s.Flannel.Write(ctx, FlannelWrite{FlannelID: lease, At: at}, FlannelWrite{FlannelID: host, At: at}); err != nil {
		t.Fatal(err)
	}
	if b := <-batches; len(b.Keys) != 2 || b.Keys[0].Value != nil || b.Keys[1].Value != nil {
		t.Errorf("%+v", b)
	}
	cancel()
	<-done
}
