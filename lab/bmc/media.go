package bmc

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Drive is the USB drive of a server that virtual media appear in. What is
// inserted and ejected shows from the next power-on, or reset by the BMC.
type Drive interface {
	Insert(ctx context.Context, image string) error // the path of a file
	Eject(ctx context.Context) error
}

// MediaStyle is a vendor's way of virtual media.
type MediaStyle string

const (
	NoMedia         MediaStyle = ""
	StandardMedia   MediaStyle = "standard"   // below the system
	HPEMedia        MediaStyle = "hpe"        // below the manager; EjectMedia wants a body
	SupermicroMedia MediaStyle = "supermicro" // InsertMedia refuses Inserted and WriteProtected; the boot target is UsbCd
	LenovoMedia     MediaStyle = "lenovo"     // no actions: a PATCH of Image inserts
	NokiaMedia      MediaStyle = "nokia"      // InsertMedia wants TransferProtocolType
	DGXMedia        MediaStyle = "dgx"        // InsertMedia wants TransferMethod, UserName and Password
)

// mediaRules are what the styles differ in.
type mediaRules struct {
	id        string
	manager   bool // below Managers/1, not below the system
	patch     bool // no actions
	ejectBody bool
	refused   []string // of InsertMedia's parameters
	needed    []string
	target    Target
}

func (m MediaStyle) rules() mediaRules {
	switch m {
	case HPEMedia:
		return mediaRules{id: "2", manager: true, ejectBody: true, target: Cd}
	case SupermicroMedia:
		return mediaRules{id: "CD1", manager: true, refused: []string{"Inserted", "WriteProtected"}, target: UsbCd}
	case LenovoMedia:
		return mediaRules{id: "Remote1", manager: true, patch: true, target: Cd}
	case NokiaMedia:
		return mediaRules{id: "1", needed: []string{"TransferProtocolType"}, target: Cd}
	case DGXMedia:
		return mediaRules{id: "USB1", manager: true, needed: []string{"TransferMethod", "UserName", "Password"}, target: Cd}
	}
	return mediaRules{id: "1", target: Cd}
}

const (
	maxImage  = 8 << 30 // bytes
	fetchTime = 10 * time.Minute
)

// Media are the virtual media of a system.
type Media struct {
	Style MediaStyle
	Drive Drive // needed unless Style is NoMedia
}

// media is the one virtual drive of a system.
type media struct {
	Media
	rules  mediaRules
	path   string // of its resource
	prefix string // of the names of its images
	dial   DialFunc

	busy sync.Mutex // held while an image is fetched, inserted or ejected

	mu           sync.Mutex // guards the fields below
	serial       int        // of the images
	file         string     // the image; empty: none is inserted
	url          string
	verify       bool // VerifyCertificate
	certificates []*x509.Certificate
}

func newMedia(s *system, number int, config Config) *media {
	m := &media{Media: s.Media, rules: s.Media.Style.rules(), prefix: filepath.Join(config.Dir, "media-"+s.ID+"-"), dial: config.Dial}
	below, id := s.path, m.rules.id
	if m.rules.manager {
		below = root + "/Managers/1"
		if number > 1 {
			id += "-" + strconv.Itoa(number)
		}
	}
	m.path = below + "/VirtualMedia/" + id
	old, _ := filepath.Glob(m.prefix + "*") // of an earlier process; the pattern is valid
	for _, file := range old {
		_ = os.Remove(file)
	}
	return m
}

func (m *media) route(mux *http.ServeMux) {
	mux.HandleFunc("POST "+m.path+"/Certificates", m.enrol)
	if m.rules.patch {
		return
	}
	mux.HandleFunc("POST "+m.path+"/Actions/VirtualMedia.InsertMedia", m.insertAction)
	mux.HandleFunc("POST "+m.path+"/Actions/VirtualMedia.EjectMedia", m.ejectAction)
}

func (m *media) addTo(t tree) {
	m.mu.Lock()
	defer m.mu.Unlock()
	drive := resource{
		"MediaTypes": allow("CD", "DVD"), "Inserted": m.file != "", "WriteProtected": true, "ConnectedVia": "NotConnected",
		"Image": nil, "ImageName": nil, "TransferProtocolType": nil, "TransferMethod": "Stream", "UserName": nil, "Password": nil,
		"VerifyCertificate": m.verify, "Certificates": link(m.path + "/Certificates"), "Status": enabled(),
	}
	if m.file != "" {
		drive["Image"], drive["ImageName"], drive["ConnectedVia"] = m.url, path.Base(m.url), "URI"
	}
	if !m.rules.patch {
		at := m.path + "/Actions/VirtualMedia."
		drive["Actions"] = resource{
			"#VirtualMedia.InsertMedia": resource{"target": at + "InsertMedia"},
			"#VirtualMedia.EjectMedia":  resource{"target": at + "EjectMedia"},
		}
	}
	for i, one := range m.certificates {
		t.add(m.path+"/Certificates/"+strconv.Itoa(i+1), "#Certificate.v1_7_0.Certificate", "Certificate", resource{
			"CertificateType": "PEM", "CertificateString": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: one.Raw})),
		})
	}
	t.collect(m.path+"/Certificates", "Certificate", "Certificates")
	t.add(m.path, "#VirtualMedia.v1_6_2.VirtualMedia", "Virtual Media", drive)
	t.collect(path.Dir(m.path), "VirtualMedia", "Virtual Media Collection")
}

func (m *media) insertAction(w http.ResponseWriter, r *http.Request) {
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	image, refused := m.rules.insert(body)
	if refused == nil {
		refused = m.insert(r.Context(), image)
	}
	if refused != nil {
		fail(w, http.StatusBadRequest, *refused)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (m *media) ejectAction(w http.ResponseWriter, r *http.Request) {
	if m.rules.ejectBody || r.ContentLength != 0 {
		if _, ok := readBody(w, r); !ok {
			return
		}
	}
	if refused := m.eject(r.Context()); refused != nil {
		fail(w, http.StatusInternalServerError, *refused)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// insert reads the parameters of InsertMedia and returns the image's URL.
func (rules mediaRules) insert(body map[string]any) (string, *message) {
	for name, value := range body {
		if slices.Contains(rules.refused, name) {
			return "", unknownProperty(name)
		}
		known := false
		switch name {
		case "Image", "TransferMethod", "TransferProtocolType", "MediaType", "UserName", "Password":
			_, known = value.(string)
		case "Inserted", "WriteProtected":
			_, known = value.(bool)
		default:
			return "", unknownProperty(name)
		}
		if !known {
			return "", badValue(name, value)
		}
	}
	for _, name := range append([]string{"Image"}, rules.needed...) {
		if _, given := body[name]; !given {
			return "", missingParameter(name)
		}
	}
	if method, given := body["TransferMethod"]; given && method != "Stream" {
		return "", badValue("TransferMethod", method)
	}
	return checkImage(body["Image"])
}

func checkImage(value any) (string, *message) {
	text, _ := value.(string)
	parsed, err := url.Parse(text)
	if err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Host == "" || len(text) > 2048 {
		return "", badValue("Image", value)
	}
	return text, nil
}

// patch changes VerifyCertificate, and inserts or ejects where there are no
// actions.
func (m *media) patch(r *http.Request, body map[string]any) (*message, error) {
	for name, value := range body {
		_, isBool := value.(bool)
		switch name {
		case "VerifyCertificate", "Inserted", "WriteProtected":
			if !isBool {
				return badValue(name, value), nil
			}
		case "Image":
			if _, refused := checkImage(value); value != nil && refused != nil {
				return refused, nil
			}
		default:
			return unknownProperty(name), nil
		}
		if name != "VerifyCertificate" && !m.rules.patch {
			return notWritable(name), nil
		}
	}
	if verify, given := body["VerifyCertificate"].(bool); given {
		m.mu.Lock()
		m.verify = verify
		m.mu.Unlock()
	}
	image, given := body["Image"]
	if body["Inserted"] == false || given && image == nil {
		return m.eject(r.Context()), nil
	}
	if text, is := image.(string); is {
		return m.insert(r.Context(), text), nil
	}
	return nil, nil
}

// insert fetches an image and puts it into the drive.
func (m *media) insert(ctx context.Context, image string) *message {
	m.busy.Lock()
	defer m.busy.Unlock()
	m.mu.Lock()
	full := m.file != ""
	m.serial++
	file := m.prefix + strconv.Itoa(m.serial) + ".iso"
	m.mu.Unlock()
	if full {
		return &message{ID: "Base.1.16.ResourceInUse", Severity: "Warning",
			Text:       "The change to the requested resource failed because the resource is in use or in transition.",
			Resolution: "Eject the medium and resubmit the request."}
	}
	if err := m.fetch(ctx, image, file); err != nil {
		_ = os.Remove(file) // it may not exist
		return &message{ID: "Base.1.16.CouldNotEstablishConnection", Severity: "Critical", Args: []string{image},
			Text:       fmt.Sprintf("The service failed to fetch the image at the URI '%s': %v.", image, err),
			Resolution: "Ensure that the URI contains a valid and reachable node name, protocol information and other URI components."}
	}
	if err := m.Drive.Insert(ctx, file); err != nil {
		refused := internal(errors.Join(err, os.Remove(file)))
		return &refused
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.file, m.url = file, image
	return nil
}

// eject empties the drive; it may be empty.
func (m *media) eject(ctx context.Context) *message {
	m.busy.Lock()
	defer m.busy.Unlock()
	m.mu.Lock()
	file := m.file
	m.mu.Unlock()
	if file == "" {
		return nil
	}
	if err := m.Drive.Eject(ctx); err != nil {
		refused := internal(err)
		return &refused
	}
	m.mu.Lock()
	m.file, m.url = "", ""
	m.mu.Unlock()
	if err := os.Remove(file); err != nil {
		refused := internal(err)
		return &refused
	}
	return nil
}

// fetch downloads an image.
func (m *media) fetch(ctx context.Context, image, file string) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	m.mu.Lock()
	client := m.dial.client(m.verify, m.certificates)
	m.mu.Unlock()
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, image, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the server answers %s", response.Status)
	}
	to, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(to, io.LimitReader(response.Body, maxImage+1))
	if err == nil && n > maxImage {
		err = fmt.Errorf("the image has more than %d bytes", int64(maxImage))
	}
	return errors.Join(err, to.Close())
}

// enrol adds a CA that https images are checked with (CertificateCollection).
func (m *media) enrol(w http.ResponseWriter, r *http.Request) {
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	text, _ := body["CertificateString"].(string)
	block, _ := pem.Decode([]byte(text))
	if block == nil || body["CertificateType"] != "PEM" {
		fail(w, http.StatusBadRequest, *badValue("CertificateString", body["CertificateType"]))
		return
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		fail(w, http.StatusBadRequest, *badValue("CertificateString", "…"))
		return
	}
	m.mu.Lock()
	m.certificates = append(m.certificates, certificate)
	at := m.path + "/Certificates/" + strconv.Itoa(len(m.certificates))
	m.mu.Unlock()
	w.Header().Set("Location", at)
	w.WriteHeader(http.StatusCreated)
}
