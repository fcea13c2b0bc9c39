package ignition

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	baseutil "github.com/coreos/butane/base/util"
	"github.com/coreos/butane/config/common"
	fcos1_0 "github.com/coreos/butane/config/fcos/v1_0"
	fcos1_1 "github.com/coreos/butane/config/fcos/v1_1"
	fcos1_2 "github.com/coreos/butane/config/fcos/v1_2"
	fcos1_3 "github.com/coreos/butane/config/fcos/v1_3"
	fcos1_4 "github.com/coreos/butane/config/fcos/v1_4"
	fcos1_5 "github.com/coreos/butane/config/fcos/v1_5"
	fcos1_6 "github.com/coreos/butane/config/fcos/v1_6"
	fcos1_7 "github.com/coreos/butane/config/fcos/v1_7"
	fiot1_0 "github.com/coreos/butane/config/fiot/v1_0"
	flatcar1_0 "github.com/coreos/butane/config/flatcar/v1_0"
	flatcar1_1 "github.com/coreos/butane/config/flatcar/v1_1"
	r4e1_0 "github.com/coreos/butane/config/r4e/v1_0"
	r4e1_1 "github.com/coreos/butane/config/r4e/v1_1"
	"github.com/coreos/ignition/v2/config/v3_6/types"
	"github.com/coreos/vcontext/report"
	"go.yaml.in/yaml/v3"
)

// This is the only file that knows Butane: upstream moved it into
// ignition/v2/butane with v2.27.

// defaultVariant is the variant with the fewest restrictions.
const defaultVariant = "fcos"

// dialect is one variant and version of Butane, and the spec that it compiles
// to. Excluded are experimental versions and openshift, whose output is a
// MachineConfig.
type dialect struct {
	variant, version string
	spec             string
	translate        func([]byte, common.TranslateBytesOptions) ([]byte, report.Report, error)
}

// dialects are sorted by variant, oldest first.
func dialects() []dialect {
	return []dialect{
		{"fcos", "1.0.0", "3.0.0", fcos1_0.ToIgn3_0Bytes},
		{"fcos", "1.1.0", "3.1.0", fcos1_1.ToIgn3_1Bytes},
		{"fcos", "1.2.0", "3.2.0", fcos1_2.ToIgn3_2Bytes},
		{"fcos", "1.3.0", "3.2.0", fcos1_3.ToIgn3_2Bytes},
		{"fcos", "1.4.0", "3.3.0", fcos1_4.ToIgn3_3Bytes},
		{"fcos", "1.5.0", "3.4.0", fcos1_5.ToIgn3_4Bytes},
		{"fcos", "1.6.0", "3.5.0", fcos1_6.ToIgn3_5Bytes},
		{"fcos", "1.7.0", "3.6.0", fcos1_7.ToIgn3_6Bytes},
		{"fiot", "1.0.0", "3.4.0", fiot1_0.ToIgn3_4Bytes},
		{"flatcar", "1.0.0", "3.3.0", flatcar1_0.ToIgn3_3Bytes},
		{"flatcar", "1.1.0", "3.4.0", flatcar1_1.ToIgn3_4Bytes},
		{"r4e", "1.0.0", "3.3.0", r4e1_0.ToIgn3_3Bytes},
		{"r4e", "1.1.0", "3.4.0", r4e1_1.ToIgn3_4Bytes},
	}
}

// header holds the fields of a layer that name its dialect, as nodes because of
// their lines.
type header struct {
	Variant, Version yaml.Node
}

// fromButane compiles a rendered layer, which must need no newer spec than
// target.
func fromButane(doc document, target spec, b *budget) (config types.Config, warnings []string, err error) {
	if empty, err := doc.empty(); empty || err != nil {
		return types.Config{}, nil, err
	}
	var whole yaml.Node
	if err := yaml.Unmarshal(doc.text, &whole); err != nil {
		return types.Config{}, nil, yamlError(doc, err)
	}
	if line, err := b.read(&whole); err != nil {
		return types.Config{}, nil, doc.errorf(line, "%s", err)
	}
	var head header
	if err := whole.Decode(&head); err != nil {
		return types.Config{}, nil, yamlError(doc, err)
	}
	chosen, err := choose(doc, head, target)
	if err != nil {
		return types.Config{}, nil, err
	}

	// Butane uses reflection and may panic on unexpected input; one machine's
	// layer must not stop bootd.
	defer func() {
		if p := recover(); p != nil {
			err = doc.errorf(0, "Butane %s %s cannot read this layer", chosen.variant, chosen.version)
		}
	}()
	// FilesDir stays empty, so that no layer can read bootd's files.
	// Compression would cost more than it saves on a provisioning network, and
	// hide the contents from readers of the config.
	options := common.TranslateBytesOptions{TranslateOptions: common.TranslateOptions{NoResourceAutoCompression: true}}
	raw, verdict, err := chosen.translate(doc.text, options)
	warnings, faults := readReport(doc, verdict)
	if faults != nil {
		return types.Config{}, nil, faults
	}
	if err != nil {
		return types.Config{}, nil, yamlError(doc, err)
	}
	config, err = specs()[specIndex(chosen.spec)].load(raw)
	if err != nil {
		return types.Config{}, nil, doc.errorf(0, "read Butane's output: %v", err)
	}
	return config, warnings, nil
}

// choose returns the dialect of a layer: the one that it names, else the newest
// that fits the target.
func choose(doc document, head header, target spec) (dialect, error) {
	variant, version := head.Variant.Value, head.Version.Value
	if variant == "" {
		variant = defaultVariant
	}
	var known []string
	var fit *dialect
	for _, d := range dialects() {
		if d.variant != variant {
			continue
		}
		known = append(known, d.version)
		fits := specIndex(d.spec) <= specIndex(target.version)
		if fits {
			fit = &d
		}
		if version == "" || d.version != version {
			continue
		}
		if fits {
			return d, nil
		}
		hint := "leave out variant and version"
		if fit != nil {
			hint = "write version: " + fit.version + ", or leave it out"
		}
		return dialect{}, doc.errorf(head.Version.Line, "%s %s needs Ignition %s, the image's Ignition understands %s: %s",
			variant, version, d.spec, target.version, hint)
	}
	switch {
	case len(known) == 0:
		return dialect{}, doc.errorf(head.Variant.Line, "Butane variant %q is not supported: use fcos, fiot, flatcar or r4e, or leave it out", variant)
	case version != "":
		return dialect{}, doc.errorf(head.Version.Line, "Butane has no version %q of variant %s: use one of %s, or leave it out",
			version, variant, strings.Join(known, ", "))
	case fit == nil:
		return dialect{}, doc.errorf(head.Variant.Line, "variant %s needs a newer Ignition than %s, which the image has: leave out variant", variant, target.version)
	}
	return *fit, nil
}

// readReport splits Butane's report into warnings and faults.
func readReport(doc document, verdict report.Report) (warnings []string, faults error) {
	var errs []error
	for _, entry := range verdict.Entries {
		line, _ := entry.Marker.Start()
		where := strings.TrimPrefix(strings.TrimPrefix(entry.Context.String(), "$"), ".")
		if where != "" {
			where += ": "
		}
		key, unknown := strings.CutPrefix(entry.Message, unusedKey)
		switch {
		case key == "<<", strings.HasPrefix(entry.Message, "context tree does not match"):
			// vcontext reports this for YAML aliases and merge keys, which are
			// fine.
		case unknown:
			// Butane only warns, but a mistyped key means that the machine
			// lacks what its owner asked for.
			errs = append(errs, doc.errorf(int(line), "%sunknown key", where))
		case entry.Message == common.ErrNoFilesDir.Error():
			errs = append(errs, doc.errorf(int(line), "%sa layer cannot read files: write the contents inline, or give a source URL", where))
		case entry.Kind.IsFatal():
			errs = append(errs, doc.errorf(int(line), "%s%s", where, entry.Message))
		default:
			warnings = append(warnings, doc.errorf(int(line), "%s%s", where, entry.Message).Error())
		}
	}
	if more := len(warnings) - maxFaults; more > 0 {
		warnings = append(warnings[:maxFaults], doc.errorf(0, "%d more warnings", more).Error())
	}
	return warnings, join(doc, errs)
}

// maxFaults bounds the faults of one layer that are listed.
const maxFaults = 10

func join(doc document, errs []error) error {
	if more := len(errs) - maxFaults; more > 0 {
		errs = append(errs[:maxFaults:maxFaults], doc.errorf(0, "%d more faults", more))
	}
	return errors.Join(errs...)
}

// yamlError splits the YAML reader's error into one per line.
func yamlError(doc document, err error) error {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	message = strings.ReplaceAll(message, " into ignition.header", ": a layer is a mapping, such as `storage:`")
	message = regexp.MustCompile(` into \[\]\S+`).ReplaceAllString(message, ": a list belongs here")
	message = regexp.MustCompile(` into \S+\.\S+`).ReplaceAllString(message, ": a mapping belongs here")
	var errs []error
	for _, m := range regexp.MustCompile(`(?m)line (\d+): (.*)$`).FindAllStringSubmatch(message, -1) {
		line, _ := strconv.Atoi(m[1]) // digits only; a huge number has no source line
		errs = append(errs, doc.errorf(line, "%s", m[2]))
	}
	if len(errs) == 0 {
		return doc.errorf(0, "%s", message)
	}
	return join(doc, errs)
}

// dataURL encodes contents as the shortest uncompressed data URL.
func dataURL(contents []byte) (string, error) {
	url, _, err := baseutil.MakeDataURL(contents, nil, false)
	if err != nil {
		return "", fmt.Errorf("encode %d bytes as a data URL: %w", len(contents), err)
	}
	return url, nil
}
