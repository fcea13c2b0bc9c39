// Package ignition compiles what a Machine gets at its first boot: it merges
// Butane layers and rackweft's own content into one validated Ignition config
// and records the origin of every item, writes the pointer config that leads to
// it, negotiates the spec version with a client, and writes systemd-networkd
// files for a Machine's links.
//
// Everything here is a pure function of its input: it reads no file, network,
// environment or clock, and the same input gives the same bytes.
package ignition

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	// A fork of encoding/json that leaves out empty structs; Butane writes its
	// configs with it too.
	"github.com/clarketm/json"
	"github.com/coreos/ignition/v2/config/v3_6"
	"github.com/coreos/ignition/v2/config/v3_6/types"
	"github.com/coreos/vcontext/report"
)

// SystemLayer is the name of System content in provenance and warnings. No
// Layer may use it.
const SystemLayer = "rackweft"

// Layer is one Butane document. It passes through text/template with
// Input.Facts before Butane reads it; see template.go for the functions.
type Layer struct {
	Name   string // shown in errors and provenance; unique within an Input
	Butane string // YAML; variant and version may be left out
}

// Input is everything that one config is made from.
type Input struct {
	// Layers are merged in order, as Ignition merges: later ones override
	// earlier ones.
	Layers []Layer
	// Facts is the template data, usually a map[string]any.
	Facts any
	// Secret returns the value for the template function `secret NAME KEY` of a
	// layer; it is called once per key. When it is nil, a layer that uses the
	// function is an error.
	Secret func(layer, name, key string) (string, error)
	// System is rackweft's own content. It overrides every layer.
	System System
	// Version is the Ignition spec version to produce, one of Versions.
	Version string
}

// Result is a compiled config with its provenance.
type Result struct {
	Config      []byte   // JSON, accepted by Ignition's own parser for Version
	Version     string   // the spec version of Config
	Provenance  []Origin // sorted by Path
	Warnings    []string // for the operator; holds no Secret values
	SecretsUsed []string // "NAME/KEY", sorted, each once
}

// Compile renders, translates, merges and validates in.
//
// An error names the layer and the line of the layer's source at fault. Neither
// errors nor warnings hold the value of a Secret.
func Compile(in Input) (Result, error) {
	target, err := targetSpec(in.Version)
	if err != nil {
		return Result{}, err
	}
	if err := checkNames(in.Layers); err != nil {
		return Result{}, err
	}
	own, err := in.System.config()
	if err != nil {
		return Result{}, err
	}

	vault, b := newVault(in.Secret), newBudget()
	parts := make([]part, 0, len(in.Layers)+1)
	var warnings []string
	for _, layer := range in.Layers {
		config, warned, err := compileLayer(layer, in.Facts, vault, b, target)
		if err != nil {
			return Result{}, err
		}
		warnings = append(warnings, warned...)
		parts = append(parts, part{layer.Name, config})
	}
	parts = append(parts, part{SystemLayer, own})

	origins := trace(parts)
	warnings = append(warnings, yieldTo(own, parts[:len(parts)-1])...)

	merged := merge(parts)
	merged.Ignition.Version = target.version
	raw, err := json.Marshal(merged)
	if err != nil {
		return Result{}, fmt.Errorf("encode the merged config: %w", err)
	}
	verdict, err := target.validate(raw)
	if err != nil {
		return Result{}, mergedError(verdict, err, merged, origins, vault)
	}
	warnings = append(warnings, mergedWarnings(verdict, merged, origins, warnings)...)

	return Result{
		Config:      raw,
		Version:     target.version,
		Provenance:  vault.scrubOrigins(origins.sorted()),
		Warnings:    vault.scrubAll(warnings),
		SecretsUsed: vault.names(),
	}, nil
}

// part is the config of one layer.
type part struct {
	layer  string
	config types.Config
}

func merge(parts []part) types.Config {
	var merged types.Config
	for _, p := range parts {
		merged = v3_6.Merge(merged, p.config)
	}
	return merged
}

func checkNames(layers []Layer) error {
	seen := make(map[string]bool, len(layers))
	for i, l := range layers {
		switch {
		case l.Name == "":
			return fmt.Errorf("layer %d has no name", i+1)
		case l.Name == SystemLayer:
			return fmt.Errorf("layer %d is named %q, which is kept for rackweft's own content: rename it", i+1, l.Name)
		case seen[l.Name]:
			return fmt.Errorf("layer %q is listed twice: list it once, at the place where it should win", l.Name)
		}
		seen[l.Name] = true
	}
	return nil
}

// compileLayer turns one layer from a template into a config of the newest spec
// that Ignition can merge.
func compileLayer(layer Layer, facts any, vault *vault, b *budget, target spec) (types.Config, []string, error) {
	secrets := vault.reader(layer.Name)
	config, warnings, err := translateLayer(layer, facts, secrets.get, b, target)
	if err == nil || !secrets.read() || secrets.failed {
		return config, warnings, err
	}
	// The message may quote a Secret, completely, truncated or encoded.
	// Compiling the same layer with harmless values shows whether the fault
	// depends on the Secret.
	if _, _, err := translateLayer(layer, facts, placeholder, newBudget(), target); err != nil {
		return types.Config{}, nil, err
	}
	return types.Config{}, nil, &layerError{
		layer:   layer.Name,
		line:    lineOf(err),
		message: "the value of a Secret makes this layer invalid: pass it through quote, or indent it if it has several lines",
	}
}

func placeholder(string, string) (string, error) { return "secret", nil }

func translateLayer(layer Layer, facts any, secret secretFunc, b *budget, target spec) (types.Config, []string, error) {
	doc, err := render(layer, facts, secret, b)
	if err != nil {
		return types.Config{}, nil, err
	}
	config, warnings, err := fromButane(doc, target, b)
	if err != nil {
		return types.Config{}, nil, err
	}
	if config.Ignition.Config.Replace.Source != nil {
		return types.Config{}, nil, doc.errorf(0, "ignition.config.replace would throw away every other layer and rackweft's own content: "+
			"make what it points to a layer")
	}
	if len(config.Ignition.Config.Merge) > 0 {
		warnings = append(warnings, doc.errorf(0, "ignition.config.merge fetches a config that rackweft cannot check, and that wins over all layers").Error())
	}
	return config, warnings, nil
}

// layerError is a fault in a layer's source.
type layerError struct {
	layer   string
	line    int // counted from 1; 0 when the fault has no single line
	message string
}

func (e *layerError) Error() string {
	if e.line == 0 {
		return fmt.Sprintf("layer %q: %s", e.layer, e.message)
	}
	return fmt.Sprintf("layer %q line %d: %s", e.layer, e.line, e.message)
}

func lineOf(err error) int {
	var fault *layerError
	if errors.As(err, &fault) {
		return fault.line
	}
	return 0
}

// mergedError explains a fault that only the merged config has, such as a file
// of one layer below a link of another.
func mergedError(verdict report.Report, err error, merged types.Config, origins origins, vault *vault) error {
	var faults []error
	for _, entry := range verdict.Entries {
		if entry.Kind.IsFatal() {
			faults = append(faults, fmt.Errorf("the merged layers do not fit together: %s%s",
				vault.scrub(origins.describe(merged, entry.Context)), vault.scrub(entry.Message)))
		}
	}
	if len(faults) == 0 {
		return fmt.Errorf("the merged config is invalid: %s", vault.scrub(err.Error()))
	}
	return errors.Join(faults...)
}

// mergedWarnings reports what only the merged config shows; Butane has already
// warned about each layer.
func mergedWarnings(verdict report.Report, merged types.Config, origins origins, known []string) []string {
	var warnings []string
	for _, entry := range verdict.Entries {
		listed := slices.ContainsFunc(known, func(w string) bool { return strings.HasSuffix(w, entry.Message) })
		if !listed {
			warnings = append(warnings, origins.describe(merged, entry.Context)+entry.Message)
		}
	}
	return warnings
}
