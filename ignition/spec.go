package ignition

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/coreos/ignition/v2/config/v3_1"
	up31 "github.com/coreos/ignition/v2/config/v3_1/translate"
	v31 "github.com/coreos/ignition/v2/config/v3_1/types"
	"github.com/coreos/ignition/v2/config/v3_2"
	up32 "github.com/coreos/ignition/v2/config/v3_2/translate"
	v32 "github.com/coreos/ignition/v2/config/v3_2/types"
	"github.com/coreos/ignition/v2/config/v3_3"
	up33 "github.com/coreos/ignition/v2/config/v3_3/translate"
	v33 "github.com/coreos/ignition/v2/config/v3_3/types"
	"github.com/coreos/ignition/v2/config/v3_4"
	up34 "github.com/coreos/ignition/v2/config/v3_4/translate"
	v34 "github.com/coreos/ignition/v2/config/v3_4/types"
	"github.com/coreos/ignition/v2/config/v3_5"
	up35 "github.com/coreos/ignition/v2/config/v3_5/translate"
	v35 "github.com/coreos/ignition/v2/config/v3_5/types"
	"github.com/coreos/ignition/v2/config/v3_6"
	up36 "github.com/coreos/ignition/v2/config/v3_6/translate"
	v36 "github.com/coreos/ignition/v2/config/v3_6/types"

	v30 "github.com/coreos/ignition/v2/config/v3_0/types"
	"github.com/coreos/vcontext/report"
)

// spec is one version of Ignition's config.
//
// Layers are merged as the newest version, into which Ignition translates all
// older ones, and written as the version that the client understands. Writing
// an older version is sound because no layer may need a newer one than the
// target and minor versions only add fields; the target's own parser then
// checks the bytes that are sent.
type spec struct {
	version string
	// load parses a config of this version, which Butane has validated, and
	// translates it to the newest.
	load func(raw []byte) (v36.Config, error)
	// validate is Ignition's parser for this version; nil for a version that is
	// allowed in layers but too old for a pointer config.
	validate func(raw []byte) (report.Report, error)
}

// specs returns all versions, oldest first.
func specs() []spec {
	from35 := func(c v35.Config) v36.Config { return up36.Translate(c) }
	from34 := func(c v34.Config) v36.Config { return from35(up35.Translate(c)) }
	from33 := func(c v33.Config) v36.Config { return from34(up34.Translate(c)) }
	from32 := func(c v32.Config) v36.Config { return from33(up33.Translate(c)) }
	from31 := func(c v31.Config) v36.Config { return from32(up32.Translate(c)) }
	from30 := func(c v30.Config) v36.Config { return from31(up31.Translate(c)) }
	return []spec{
		{"3.0.0", loader(from30), nil},
		{"3.1.0", loader(from31), validator(v3_1.Parse)},
		{"3.2.0", loader(from32), validator(v3_2.Parse)},
		{"3.3.0", loader(from33), validator(v3_3.Parse)},
		{"3.4.0", loader(from34), validator(v3_4.Parse)},
		{"3.5.0", loader(from35), validator(v3_5.Parse)},
		{"3.6.0", loader(func(c v36.Config) v36.Config { return c }), validator(v3_6.Parse)},
	}
}

// Versions returns the spec versions that Compile and Pointer can produce,
// oldest first.
func Versions() []string {
	var versions []string
	for _, s := range specs() {
		if s.validate != nil {
			versions = append(versions, s.version)
		}
	}
	return versions
}

func targetSpec(version string) (spec, error) {
	for _, s := range specs() {
		if s.version == version && s.validate != nil {
			return s, nil
		}
	}
	return spec{}, fmt.Errorf("cannot produce Ignition version %q: use one of %s", version, strings.Join(Versions(), ", "))
}

// specIndex returns the position of a version in specs().
func specIndex(version string) int {
	for i, s := range specs() {
		if s.version == version {
			return i
		}
	}
	return -1
}

func loader[C any](up func(C) v36.Config) func([]byte) (v36.Config, error) {
	return func(raw []byte) (v36.Config, error) {
		var config C
		if err := json.Unmarshal(raw, &config); err != nil {
			return v36.Config{}, err
		}
		return up(config), nil
	}
}

// validator reports a key that the version does not know as a fault: Ignition
// would ignore it silently.
func validator[C any](parse func([]byte) (C, report.Report, error)) func([]byte) (report.Report, error) {
	return func(raw []byte) (report.Report, error) {
		_, verdict, err := parse(raw)
		if err != nil {
			return verdict, err
		}
		for i, entry := range verdict.Entries {
			if strings.HasPrefix(entry.Message, unusedKey) {
				verdict.Entries[i].Kind = report.Error
				err = fmt.Errorf("%s", entry.Message)
			}
		}
		return verdict, err
	}
}

// unusedKey is the prefix of the warning of config/validate.ValidateUnusedKeys.
const unusedKey = "unused key "
