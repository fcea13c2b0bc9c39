package bmc_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rackweft/rackweft/lab/bmc"
)

// fakeDrive remembers the image.
type fakeDrive struct {
	mu    sync.Mutex
	image string
}

func (d *fakeDrive) Insert(_ context.Context, image string) error { return d.set(image) }
func (d *fakeDrive) Eject(context.Context) error                  { return d.set("") }

func (d *fakeDrive) set(image string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.image = image
	return nil
}

func (d *fakeDrive) content(t *testing.T) string {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.image == "" {
		return ""
	}
	content, err := os.ReadFile(d.image)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func withMedia(style bmc.MediaStyle, drive bmc.Drive) func(*bmc.Config) {
	return func(c *bmc.Config) { c.Systems[0].Media = bmc.Media{Style: style, Drive: drive} }
}

func imageServer(t *testing.T) *httptest.Server {
	t.Helper()
	images := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/boot.iso" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte("an image"))
	}))
	t.Cleanup(images.Close)
	return images
}

func TestVirtualMedia(t *testing.T) {
	const below = "/Actions/VirtualMedia."
	tests := []struct {
		style  bmc.MediaStyle
		path   string
		insert string // IMAGE is replaced by the URL
		bad    string // refused
		eject  string // the body
		boots  string
	}{
		{bmc.StandardMedia, system + "/VirtualMedia/1", `{"Image":"IMAGE","Inserted":true,"WriteProtected":true}`, `{"Inserted":true}`, "", "Cd"},
		{bmc.HPEMedia, "/redfish/v1/Managers/1/VirtualMedia/2", `{"Image":"IMAGE"}`, `{"Image":"ftp://x/y"}`, "{}", "Cd"},
		{bmc.SupermicroMedia, "/redfish/v1/Managers/1/VirtualMedia/CD1", `{"Image":"IMAGE"}`, `{"Image":"IMAGE","Inserted":true}`, "", "UsbCd"},
		{bmc.NokiaMedia, system + "/VirtualMedia/1", `{"Image":"IMAGE","TransferProtocolType":"HTTP"}`, `{"Image":"IMAGE"}`, "", "Cd"},
		{bmc.DGXMedia, "/redfish/v1/Managers/1/VirtualMedia/USB1", `{"Image":"IMAGE","TransferMethod":"Stream","UserName":"x","Password":"x"}`, `{"Image":"IMAGE","TransferMethod":"Upload","UserName":"x","Password":"x"}`, "", "Cd"},
	}
	images := imageServer(t)
	image := images.URL + "/boot.iso"
	for _, tt := range tests {
		t.Run(string(tt.style), func(t *testing.T) {
			drive := &fakeDrive{}
			dir := t.TempDir()
			_, _, address := serve(t, func(c *bmc.Config) { c.Dir = dir; withMedia(tt.style, drive)(c) })
			c := newClient(t, address)
			shown := func(inserted bool, image any) {
				t.Helper()
				body := c.want(200, "GET", tt.path, "")
				if body["Inserted"] != inserted || body["Image"] != image {
					t.Fatalf("Inserted %v, Image %v; want %v, %v", body["Inserted"], body["Image"], inserted, image)
				}
			}
			shown(false, nil)
			full := func(body string) string { return strings.ReplaceAll(body, "IMAGE", image) }
			c.want(400, "POST", tt.path+below+"InsertMedia", full(tt.bad))
			c.want(400, "POST", tt.path+below+"InsertMedia", `{"Image":7}`)
			c.want(400, "POST", tt.path+below+"InsertMedia", strings.ReplaceAll(tt.insert, "IMAGE", images.URL+"/none.iso"))
			shown(false, nil)
			c.want(204, "POST", tt.path+below+"InsertMedia", full(tt.insert))
			shown(true, image)
			if got := drive.content(t); got != "an image" {
				t.Errorf("the drive has %q", got)
			}
			c.want(400, "POST", tt.path+below+"InsertMedia", full(tt.insert)) // it is full
			c.want(200, "PATCH", system, `{"Boot":{"BootSourceOverrideTarget":"`+tt.boots+`","BootSourceOverrideEnabled":"Once"}}`)
			c.crawl()
			if tt.eject != "" {
				c.want(400, "POST", tt.path+below+"EjectMedia", "")
			}
			c.want(204, "POST", tt.path+below+"EjectMedia", tt.eject)
			shown(false, nil)
			c.want(204, "POST", tt.path+below+"EjectMedia", tt.eject) // it is empty
			if left, _ := filepath.Glob(filepath.Join(dir, "media-*")); drive.content(t) != "" || len(left) > 0 {
				t.Errorf("after eject the drive has %q, and %v is left", drive.content(t), left)
			}
		})
	}
}

func TestVirtualMediaByPatch(t *testing.T) {
	const path = "/redfish/v1/Managers/1/VirtualMedia/Remote1"
	image := imageServer(t).URL + "/boot.iso"
	drive := &fakeDrive{}
	_, _, address := serve(t, withMedia(bmc.LenovoMedia, drive))
	c := newClient(t, address)
	if body := c.want(200, "GET", path, ""); body["Actions"] != nil {
		t.Errorf("actions %v", body["Actions"])
	}
	c.want(404, "POST", path+"/Actions/VirtualMedia.InsertMedia", `{"Image":"`+image+`"}`)
	c.want(400, "PATCH", path, `{"Image":"nowhere"}`)
	if body := c.want(200, "PATCH", path, `{"Image":"`+image+`","Inserted":true,"WriteProtected":true}`); body["Inserted"] != true {
		t.Errorf("Inserted %v", body["Inserted"])
	}
	if got := drive.content(t); got != "an image" {
		t.Errorf("the drive has %q", got)
	}
	if body := c.want(200, "PATCH", path, `{"Image":null,"Inserted":false}`); body["Inserted"] != false || drive.content(t) != "" {
		t.Errorf("Inserted %v, the drive has %q", body["Inserted"], drive.content(t))
	}
}

func TestImageOverHTTPS(t *testing.T) {
	images := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("secure")) }))
	t.Cleanup(images.Close)
	drive := &fakeDrive{}
	_, _, address := serve(t, withMedia(bmc.StandardMedia, drive))
	c := newClient(t, address)
	const path = system + "/VirtualMedia/1"
	insert := func(status int) {
		t.Helper()
		c.want(status, "POST", path+"/Actions/VirtualMedia.InsertMedia", `{"Image":"`+images.URL+`/x.iso"}`)
	}
	insert(204) // BMCs trust any certificate
	c.want(204, "POST", path+"/Actions/VirtualMedia.EjectMedia", "")
	c.want(200, "PATCH", path, `{"VerifyCertificate":true}`)
	insert(400)
	certificate, err := json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: images.Certificate().Raw})))
	if err != nil {
		t.Fatal(err)
	}
	c.want(400, "POST", path+"/Certificates", `{"CertificateString":"none","CertificateType":"PEM"}`)
	c.want(201, "POST", path+"/Certificates", `{"CertificateString":`+string(certificate)+`,"CertificateType":"PEM"}`)
	insert(204)
	c.crawl()
	if got := drive.content(t); got != "secure" {
		t.Errorf("the drive has %q", got)
	}
}

func TestNoMedia(t *testing.T) {
	_, _, address := serve(t, nil)
	c := newClient(t, address)
	c.want(404, "GET", system+"/VirtualMedia", "")
	c.want(400, "PATCH", system, `{"Boot":{"BootSourceOverrideTarget":"Cd"}}`)
}

func FuzzInsertMedia(f *testing.F) {
	f.Add(uint8(0), `{"Image":"http://198.18.0.1/boot.iso","Inserted":true}`)
	f.Add(uint8(3), `{"Image":null}`)
	f.Add(uint8(2), `[]`)
	styles := []bmc.MediaStyle{bmc.StandardMedia, bmc.HPEMedia, bmc.SupermicroMedia, bmc.LenovoMedia, bmc.NokiaMedia, bmc.DGXMedia}
	drive := &fakeDrive{}
	var handlers []http.Handler
	for _, style := range styles {
		config := bmc.Config{Dir: f.TempDir(), Address: net.IPv4(127, 0, 0, 1), Username: "admin", Password: password,
			Dial:    func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed },
			Systems: []bmc.SystemConfig{{Machine: &fakeMachine{power: bmc.Off}, Media: bmc.Media{Style: style, Drive: drive}}}}
		server, err := bmc.New(config, slog.New(slog.DiscardHandler))
		if err != nil {
			f.Fatal(err)
		}
		handlers = append(handlers, server.Handler())
	}
	places := []string{system + "/VirtualMedia/1", "/redfish/v1/Managers/1/VirtualMedia/2", "/redfish/v1/Managers/1/VirtualMedia/CD1",
		"/redfish/v1/Managers/1/VirtualMedia/Remote1", system + "/VirtualMedia/1", "/redfish/v1/Managers/1/VirtualMedia/USB1"}
	f.Fuzz(func(t *testing.T, style uint8, body string) {
		i := int(style) % len(styles)
		for _, action := range []struct{ method, path string }{
			{"POST", "/Actions/VirtualMedia.InsertMedia"}, {"POST", "/Actions/VirtualMedia.EjectMedia"}, {"POST", "/Certificates"}, {"PATCH", ""},
		} {
			request, err := http.NewRequestWithContext(t.Context(), action.method, places[i]+action.path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			request.SetBasicAuth("admin", password)
			answer := httptest.NewRecorder()
			handlers[i].ServeHTTP(answer, request)
			if answer.Code >= 500 {
				t.Errorf("%s %s %q: status %d", action.method, action.path, body, answer.Code)
			}
		}
		if drive.image != "" {
			t.Errorf("%q inserts %q", body, drive.image)
		}
	})
}
