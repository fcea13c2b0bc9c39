package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/rackweft/rackweft/api"
)

const (
	defaultServer = "unix:///run/rackweft/bootd.sock"
	labServer     = "unix://" + defaultLabDir + "/bootd/run/bootd.sock"
)

// connection says where bootd is and with which credentials to connect: flags first, then the environment, then
// the configuration file, then the defaults.
type connection struct {
	Server    string `json:"server,omitzero"`
	CA        string `json:"ca,omitzero"`
	Cert      string `json:"cert,omitzero"`
	Key       string `json:"key,omitzero"`
	TokenFile string `json:"tokenFile,omitzero"`
	Token     string `json:"token,omitzero"`
}

func (c *connection) flags(root *cobra.Command, env func(string) string) {
	f := root.PersistentFlags()
	f.StringVar(&c.Server, "server", "", "unix:///path or https://host:8443 (RACKWEFT_SERVER). Default: "+defaultServer+", else the lab's")
	f.StringVar(&c.CA, "ca", "", "the site's CA certificate (PEM)")
	f.StringVar(&c.Cert, "cert", "", "client certificate (PEM)")
	f.StringVar(&c.Key, "key", "", "key of the client certificate (PEM)")
	f.StringVar(&c.TokenFile, "token-file", "", "file that holds a bearer token (or put the token into RACKWEFT_TOKEN)")
}

func configFile(env func(string) string) string {
	if dir := env("XDG_CONFIG_HOME"); dir != "" {
		return filepath.Join(dir, "rackweft", "weftctl.yaml")
	}
	if home := env("HOME"); home != "" {
		return filepath.Join(home, ".config", "rackweft", "weftctl.yaml")
	}
	return ""
}

// resolve fills in what the flags leave out.
func (c connection) resolve(env func(string) string) (connection, error) {
	file, err := readConnection(configFile(env))
	if err != nil {
		return c, usageError{err}
	}
	if c.TokenFile != "" {
		if c.Token, err = readToken(c.TokenFile); err != nil {
			return c, usageError{err}
		}
	}
	if c.Token == "" {
		c.Token = env("RACKWEFT_TOKEN")
	}
	if c.Token == "" && file.TokenFile != "" {
		if c.Token, err = readToken(file.TokenFile); err != nil {
			return c, usageError{err}
		}
	}
	first := func(to *string, others ...string) {
		for _, v := range others {
			if *to == "" {
				*to = v
			}
		}
	}
	first(&c.Token, file.Token)
	first(&c.Server, env("RACKWEFT_SERVER"), file.Server, localServer(defaultServer, labServer))
	first(&c.CA, file.CA)
	if c.Cert == "" && c.Key == "" { // a pair: halves from two sources do not match
		c.Cert, c.Key = file.Cert, file.Key
	}
	if (c.Cert == "") != (c.Key == "") {
		return c, usagef("--cert and --key go together: one of them is missing")
	}
	return c, nil
}

// localServer is the first whose socket exists, or else the first.
func localServer(servers ...string) string {
	for _, s := range servers {
		if _, err := os.Stat(strings.TrimPrefix(s, "unix://")); err == nil {
			return s
		}
	}
	return servers[0]
}

func readConnection(path string) (connection, error) {
	var c connection
	if path == "" {
		return c, nil
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read the configuration: %w", err)
	}
	doc, err := yaml.YAMLToJSONStrict(raw)
	if err == nil && string(doc) != "null" {
		err = api.DecodeStrict(doc, &c)
	}
	if err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	for _, f := range []*string{&c.CA, &c.Cert, &c.Key, &c.TokenFile} { // next to the configuration, wherever that is copied to
		if *f != "" && !filepath.IsAbs(*f) {
			*f = filepath.Join(filepath.Dir(path), *f)
		}
	}
	return c, nil
}

func readToken(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(string(raw))
	if token == "" {
		return "", fmt.Errorf("read the token: %s is empty", path)
	}
	return token, nil
}

func (c connection) client(env func(string) string) (*api.Client, error) {
	r, err := c.resolve(env)
	if err != nil {
		return nil, err
	}
	client, err := api.NewClient(api.ClientConfig{Server: r.Server, CAFile: r.CA, CertFile: r.Cert, KeyFile: r.Key, Token: r.Token})
	if err != nil {
		return nil, usageError{err}
	}
	return client, nil
}

// advise adds what to check to a connection error.
func (a *app) advise(err error) error {
	advice := ""
	var network *net.OpError
	var unknownCA x509.UnknownAuthorityError
	var wrongName x509.HostnameError
	var verify *tls.CertificateVerificationError
	switch {
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted")
	case errors.As(err, &unknownCA):
		advice = "the server's certificate is not signed by the configured CA: give the site's CA with --ca"
	case errors.As(err, &wrongName):
		advice = "the server's certificate is for other names: use one of them in --server"
	case errors.As(err, &verify):
		advice = "check --ca and the clock of this machine"
	case api.IsStatus(err, http.StatusUnauthorized):
		advice = "say who you are with --cert and --key, or with --token-file or RACKWEFT_TOKEN"
	case errors.As(err, &network) && network.Op == "dial":
		return a.dialAdvice(err, network)
	}
	if advice == "" {
		return err
	}
	return fmt.Errorf("%w; %s", err, advice)
}

// dialAdvice says in one line which server was not reached, why, and what to do.
func (a *app) dialAdvice(err error, network *net.OpError) error {
	c, resolveErr := a.connection.resolve(a.Env)
	if resolveErr != nil {
		return err
	}
	advice := "is bootd running there, and is the port open? Say where it is with --server or RACKWEFT_SERVER"
	local := strings.HasPrefix(c.Server, "unix://")
	switch {
	case errors.Is(err, fs.ErrPermission):
		advice = "the socket is for root: use sudo, or --server https://host:8443 with a certificate or token"
	case local && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)):
		advice = "is bootd running here (systemctl status bootd)? Say where it is with --server or RACKWEFT_SERVER"
	}
	return fmt.Errorf("no bootd answers at %s (%w); %s", c.Server, network.Err, advice)
}
