package redfish

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// splitAddress gives host (IPv6 in brackets) and port.
func splitAddress(address string) (host, port string, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", "", fmt.Errorf("address: %w", err)
	}
	if u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return "", "", errors.New("address must be https://host or https://host:port")
	}
	host, port = u.Hostname(), u.Port()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == "" {
		port = "443"
	}
	return host, port, nil
}

func checkFingerprint(fingerprint string) error {
	digits, ok := strings.CutPrefix(strings.ToLower(fingerprint), "sha256:")
	if fingerprint == "" || ok && len(digits) == 64 && strings.Trim(digits, "0123456789abcdef") == "" {
		return nil
	}
	return fmt.Errorf("fingerprint %q must be sha256: and 64 hexadecimal digits", fingerprint)
}

// sameHost keeps the session's token from following a redirect elsewhere.
func sameHost(req *http.Request, via []*http.Request) error {
	if len(via) > 3 || req.URL.Host != via[0].URL.Host || req.URL.Scheme != "https" {
		return fmt.Errorf("BMC redirects to %s: refused", req.URL)
	}
	return nil
}

// pathOf drops scheme and host of a URL: a BMC behind an address translation names itself wrongly.
func pathOf(location string) string {
	u, err := url.Parse(location)
	if err != nil || !strings.HasPrefix(u.Path, "/") {
		return ""
	}
	return u.RequestURI()
}
