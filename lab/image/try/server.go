package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	hostAddress = "198.18.0.2"
	token       = "a-token-that-travels-in-a-header"
	payload     = "fetched over https, checked by digest\n"
)

// server replaces bootd: rootfs and pointer over HTTP, the config and its files
// over HTTPS with a CA that only the pointer names.
type server struct {
	image         string
	command       string
	boot          int
	faults        bool
	plain, tls    net.Listener
	http, https   *http.Server
	serving       sync.WaitGroup
	ca            string
	mu            sync.Mutex
	seen          []event
	rootfsServed  int
	configServed  int
	payloadServed int
}

type event struct {
	at   time.Time
	what string
}

func serve(image string, boot int, faults bool, command string) (*server, error) {
	s := &server{image: image, command: command, boot: boot, faults: faults}
	cert, ca, err := certificate()
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	s.ca = ca
	if s.plain, err = loopbackPort(); err != nil {
		return nil, err
	}
	if s.tls, err = loopbackPort(); err != nil {
		return nil, errors.Join(err, s.plain.Close())
	}
	open := http.NewServeMux()
	open.HandleFunc("/blobs/", s.rootfs)
	open.HandleFunc("/ignition/pointer/", s.pointer)
	closed := http.NewServeMux()
	closed.HandleFunc("/config", s.config)
	closed.HandleFunc("/payload", s.payload)
	s.http = &http.Server{Handler: open, ReadHeaderTimeout: time.Minute}
	s.https = &http.Server{Handler: closed, ReadHeaderTimeout: time.Minute,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
	s.serving.Go(func() { report(s.http.Serve(s.plain)) })
	s.serving.Go(func() { report(s.https.ServeTLS(s.tls, "", "")) })
	return s, nil
}

func report(err error) {
	if !errors.Is(err, http.ErrServerClosed) {
		fmt.Fprintln(os.Stderr, "try: serve:", err)
	}
}

// Close stops both servers and waits for them.
func (s *server) Close() error {
	err := errors.Join(s.http.Close(), s.https.Close())
	s.serving.Wait()
	return err
}

func (s *server) URL(path string) string { return s.url("http", s.plain, path) }

func (s *server) url(scheme string, l net.Listener, path string) string {
	return fmt.Sprintf("%s://%s:%d%s", scheme, hostAddress, l.Addr().(*net.TCPAddr).Port, path)
}

func (s *server) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, event{time.Now(), fmt.Sprintf(format, args...)})
}

func (s *server) report(boot int, start time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.seen {
		fmt.Printf("boot %d: served %6.1f s %s\n", boot, e.at.Sub(start).Seconds(), e.what)
	}
}

// rootfs misbehaves, if requested, like a server that is killed and restarted:
// 503, a truncated transfer, then one with a wrong byte.
func (s *server) rootfs(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.rootfsServed++
	n := s.rootfsServed
	s.mu.Unlock()
	s.note("rootfs %q (%d)", r.Header.Get("Range"), n)
	path := filepath.Join(s.image, "rootfs.squashfs")
	switch {
	case s.faults && n == 1:
		http.Error(w, "not yet", http.StatusServiceUnavailable)
	case s.faults && n == 2:
		http.ServeFile(&cutter{ResponseWriter: w, left: 5 << 20}, r, path)
	case s.faults && n == 3:
		http.ServeFile(&flipper{w}, r, path)
	default:
		http.ServeFile(w, r, path)
	}
	s.note("rootfs served (%d)", n)
}

type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.left -= len(p); c.left < 0 {
		panic(http.ErrAbortHandler)
	}
	return c.ResponseWriter.Write(p)
}

type flipper struct{ http.ResponseWriter }

func (f *flipper) Write(p []byte) (int, error) {
	q := append([]byte(nil), p...)
	q[0] ^= 1
	return f.ResponseWriter.Write(q)
}

func (s *server) pointer(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.configServed++
	n := s.configServed
	s.mu.Unlock()
	s.note("pointer, Accept: %s", r.Header.Get("Accept"))
	if s.faults && n <= 2 {
		http.Error(w, "not yet", http.StatusServiceUnavailable)
		return
	}
	writeJSON(w, map[string]any{"ignition": map[string]any{
		"version": "3.4.0",
		"config": map[string]any{"replace": map[string]any{
			"source":      s.url("https", s.tls, "/config"),
			"httpHeaders": []any{map[string]any{"name": "Authorization", "value": "Bearer " + token}},
		}},
		"security": map[string]any{"tls": map[string]any{"certificateAuthorities": []any{
			map[string]any{"source": dataURL(s.ca)}}}},
	}})
}

func (s *server) config(w http.ResponseWriter, r *http.Request) {
	s.note("config")
	if r.Header.Get("Authorization") != "Bearer "+token {
		http.Error(w, "no token", http.StatusForbidden)
		return
	}
	sum := sha512.Sum512([]byte(payload))
	file := func(path string, mode int, content map[string]any) map[string]any {
		return map[string]any{"path": path, "mode": mode, "overwrite": true, "contents": content}
	}
	inline := func(text string) map[string]any { return map[string]any{"source": dataURL(text)} }
	writeJSON(w, map[string]any{
		"ignition": map[string]any{"version": "3.4.0",
			"security": map[string]any{"tls": map[string]any{"certificateAuthorities": []any{
				map[string]any{"source": dataURL(s.ca)}}}}},
		"passwd": map[string]any{"users": []any{
			map[string]any{"name": "core", "sshAuthorizedKeys": []any{"ssh-ed25519 AAAA core@try"}},
			map[string]any{"name": "root", "sshAuthorizedKeys": []any{"ssh-ed25519 AAAA root@try"}}}},
		"storage": map[string]any{
			"filesystems": []any{map[string]any{"device": "/dev/vda", "format": "ext4", "label": "rackweft-data",
				"wipeFilesystem": false, "path": "/var/lib/rackweft"}},
			"directories": []any{map[string]any{"path": "/opt/made", "mode": 0o750}},
			"links":       []any{map[string]any{"path": "/opt/link", "target": "/opt/made"}},
			"files": []any{
				file("/etc/hostname", 0o644, inline("r1u07\n")),
				file("/opt/payload", 0o600, map[string]any{"source": s.url("https", s.tls, "/payload"),
					"httpHeaders":  []any{map[string]any{"name": "Authorization", "value": "Bearer " + token}},
					"verification": map[string]any{"hash": "sha512-" + hex.EncodeToString(sum[:])}}),
				file("/opt/ready", 0o755, inline(readyScript(s.boot)+s.command+"\necho RUN done\n")),
				file("/etc/systemd/network/10-boot.network", 0o644, inline("[Match]\nMACAddress="+bootMAC+
					"\n[Network]\nDHCP=ipv4\n[DHCPv4]\nClientIdentifier=mac\n")),
			}},
		"systemd": map[string]any{"units": []any{
			map[string]any{"name": "var-lib-rackweft.mount", "enabled": true, "contents": mountUnit},
			map[string]any{"name": "ready.service", "enabled": true, "contents": readyUnit},
		}},
	})
}

func (s *server) payload(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+token {
		http.Error(w, "no token", http.StatusForbidden)
		return
	}
	s.mu.Lock()
	s.payloadServed++
	n := s.payloadServed
	s.mu.Unlock()
	s.note("payload (%d)", n)
	if s.faults && n == 1 {
		w.Header().Set("Content-Length", strconv.Itoa(len(payload)))
		_, _ = io.WriteString(w, payload[:len(payload)/2])
		_ = http.NewResponseController(w).Flush() // otherwise nothing is sent, which a retrying client does not see as a fault
		panic(http.ErrAbortHandler)
	}
	_, _ = io.WriteString(w, payload) // the console shows whether the client has gone
}

const mountUnit = `[Unit]
Requires=systemd-fsck@dev-disk-by\x2dlabel-rackweft\x2ddata.service
After=systemd-fsck@dev-disk-by\x2dlabel-rackweft\x2ddata.service
[Mount]
What=/dev/disk/by-label/rackweft-data
Where=/var/lib/rackweft
Type=ext4
[Install]
RequiredBy=local-fs.target
`

const readyUnit = `[Unit]
After=systemd-networkd.service
[Service]
Type=oneshot
ExecStart=/opt/ready
StandardOutput=tty
TTYPath=/dev/console
[Install]
WantedBy=multi-user.target
`

// readyScript counts the boots on the data disk and checks the other settings
// of the config.
func readyScript(boot int) string {
	return strings.ReplaceAll(`#!/bin/bash
check() { "$@" >/dev/null 2>&1 && echo 1 || echo 0; }
mountpoint -q /var/lib/rackweft && echo boot >>/var/lib/rackweft/boots && sync
bare() { [ -z "$(ip -o address show to 198.18.0.0/15 dev "$(nic 01)")" ]; }
nic() { ip -o link | sed -n "s/^[0-9]*: \([^:]*\): .*52:54:00:01:07:$1 .*/\1/p"; }
users() { grep -q core /home/core/.ssh/authorized_keys && grep -q root /root/.ssh/authorized_keys; }
fetched() { grep -q 'checked by digest' /opt/payload && [ "$(readlink /opt/link)" = /opt/made ] && [ -d /opt/made ]; }
echo "READY boot=BOOT boots-on-disk=$(wc -l </var/lib/rackweft/boots) host=$(uname -n) user=$(check users) other-nic-down-or-bare=$(check bare) fetched=$(check fetched)"
systemctl --no-legend --plain --failed list-units
ip -br address
`, "BOOT", fmt.Sprint(boot))
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // as above
}

func dataURL(text string) string {
	return "data:;base64," + base64.StdEncoding.EncodeToString([]byte(text))
}

// certificate is valid from 1970 to 9999, as bootd's is: the machine's clock
// starts in 1980.
func certificate() (tls.Certificate, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "try"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.ParseIP(hostAddress)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, ca, nil
}
