package server

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/boot"
)

// TestImage: a BMC reads the image of its Machine whole, or in ranges.
func TestImage(t *testing.T) {
	r := newRig(t)
	kernel := bytes.Repeat([]byte("kernel "), 5000)
	sum := sha256.Sum256(kernel)
	digest := hex.EncodeToString(sum[:])
	r.decider.medium = boot.Medium{Kernel: api.SHA256(digest), Authority: []byte("an initrd with the CA"), Config: []byte("linux /KERNEL.IMG\n")}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.authority.Pool()}}}
	defer client.CloseIdleConnections()
	get := func(method, key, file, ranges string) (int, http.Header, string) {
		req, err := http.NewRequest(method, r.base+"/v1/media/r1/"+key+"/"+file, nil)
		must(t, err)
		if ranges != "" {
			req.Header.Set("Range", ranges)
		}
		return r.send(client, req)
	}
	if status, _, _ := get("GET", "key", "boot.iso", ""); status != http.StatusServiceUnavailable {
		t.Errorf("without its kernel: %d", status)
	}
	_, _, err := r.blobs.Put(t.Context(), bytes.NewReader(kernel), blob.Digest("sha256:"+digest))
	must(t, err)
	status, header, whole := get("GET", "key", "boot.iso", "")
	if status != http.StatusOK || header.Get("Accept-Ranges") != "bytes" || header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", status, header)
	}
	for what, content := range map[string]string{"kernel": string(kernel), "CA": "an initrd with the CA", "config": "linux /KERNEL.IMG\n", "loader": "GRUB"} {
		if !strings.Contains(whole, content) {
			t.Errorf("the image has no %s", what)
		}
	}
	status, header, first := get("GET", "key", "boot.iso", "bytes=32768-34815")
	if status != http.StatusPartialContent || first != whole[32768:34816] || !strings.HasPrefix(first, "\x01CD001") {
		t.Errorf("the volume descriptor: %d %v, %d bytes", status, header, len(first))
	}
	if status, header, _ := get("HEAD", "key", "boot.iso", ""); status != http.StatusOK || header.Get("Content-Length") == "" {
		t.Errorf("HEAD: %d %v", status, header)
	}
	if status, _, _ := get("GET", "other", "boot.iso", ""); status != http.StatusForbidden {
		t.Errorf("with another key: %d", status)
	}
	if status, _, _ := get("GET", "key", "other.iso", ""); status != http.StatusNotFound {
		t.Errorf("another file: %d", status)
	}
}
