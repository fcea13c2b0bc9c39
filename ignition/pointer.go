package ignition

import (
	"fmt"
	"net/url"

	"github.com/clarketm/json"
	"github.com/coreos/ignition/v2/config/v3_6/types"
)

// PointerConfig says where a Machine finds its config, and how it authenticates
// the request.
type PointerConfig struct {
	URL     string   // https
	CAs     [][]byte // PEM; none when the server's certificate is publicly trusted
	Token   string   // sent as `Authorization: Bearer`, never in the URL
	Version string   // Ignition spec version, one of Versions
}

// Pointer returns the config of the first, unprotected fetch: it only says
// where and how to fetch the real one. An error does not show the token.
func Pointer(p PointerConfig) ([]byte, error) {
	target, err := targetSpec(p.Version)
	if err != nil {
		return nil, fmt.Errorf("pointer config: %w", err)
	}
	source, err := url.Parse(p.URL)
	if err != nil || source.Scheme != "https" || source.Host == "" || source.User != nil {
		return nil, fmt.Errorf("pointer config: the URL must be https://HOST/… without a password: the token is sent there")
	}
	headers, err := bearer(p.Token)
	if err != nil {
		return nil, fmt.Errorf("pointer config: %w", err)
	}
	cas, err := certificateAuthorities(p.CAs)
	if err != nil {
		return nil, fmt.Errorf("pointer config: %w", err)
	}

	var config types.Config
	config.Ignition.Version = target.version
	config.Ignition.Config.Replace = types.Resource{Source: &p.URL, HTTPHeaders: headers}
	config.Ignition.Security.TLS.CertificateAuthorities = cas
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode the pointer config: %w", err)
	}
	if verdict, err := target.validate(raw); err != nil {
		return nil, fmt.Errorf("pointer config: Ignition %s rejects it: %w (%d findings)", target.version, err, len(verdict.Entries))
	}
	return raw, nil
}
