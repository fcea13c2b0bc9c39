package nodeagent

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"

	"github.com/rackweft/rackweft/api"
	"sigs.k8s.io/yaml"
)

// LoadConfig reads the agent's configuration file. Unknown fields are errors; every
// error names the file and the field.
func LoadConfig(path string) (api.AgentConfig, error) {
	var c api.AgentConfig
	text, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read the configuration that Ignition writes: %w", err)
	}
	raw, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	if err := api.DecodeStrict(raw, &c); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	if err := validate(c); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func validate(c api.AgentConfig) error {
	var e api.FieldErrors
	add := func(pointer, format string, args ...any) {
		e = append(e, api.FieldError{Pointer: pointer, Message: fmt.Sprintf(format, args...)})
	}
	if err := api.ValidateName(c.Machine); err != nil {
		add("/machine", "%s", err)
	}
	if c.UID == "" {
		add("/uid", "the Machine's uid is required")
	}
	if c.AttemptID == "" {
		add("/attemptID", "the id of the BootAttempt is required")
	}
	if len(c.API) == 0 {
		add("/api", "at least one URL of bootd is required, such as https://198.18.0.1:8443")
	}
	for i, u := range c.API {
		if _, err := apiHost(u); err != nil {
			add(api.Pointer("api", i), "%s", err)
		}
	}
	if _, err := parseCertificates(c.CA); err != nil {
		add("/ca", "the site's CA: %s", err)
	}
	if c.Metrics != "" {
		if _, err := api.ListenPort(c.Metrics); err != nil {
			add("/metrics", "invalid address %q: %s", c.Metrics, err)
		}
	}
	return e.OrNil()
}

// apiHost returns the name or address that bootd's certificate must have.
func apiHost(base string) (string, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" {
		return "", fmt.Errorf("invalid URL of bootd %q: want https://host:8443", base)
	}
	return u.Hostname(), nil
}

// parseCertificates reads one or more PEM certificates.
func parseCertificates(text string) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block is a %s, not a CERTIFICATE", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate %d: %w", len(list)+1, err)
		}
		list = append(list, cert)
	}
	if len(list) == 0 {
		return nil, errors.New("no PEM certificate found")
	}
	return list, nil
}
