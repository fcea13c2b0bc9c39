package cli

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/manifest"
)

// input is one object that a person wrote, and where.
type input struct {
	object   api.Object
	kind     api.Kind
	document *manifest.Document
	uploads  []upload // files of an Image that are here
}

func (i input) title() string { return title(i.kind, i.object.Meta().Name) }

// applyCommands create and change objects from files or an editor.
type applyCommands struct{ *manifests }

func (a *applyCommands) applyCommand() *cobra.Command {
	var files []string
	var dryRun bool
	c := &cobra.Command{
		Use:   "apply -f FILE|DIRECTORY|-",
		Short: "Create or change objects from files",
		Long: `apply reads objects from YAML or JSON files (several documents to a file are fine), checks all of them,
and sends them in the order of their references. An object that already matches its file is left alone. Objects of
one kind are sent in parallel; one that is refused does not hold back the others.

Files that an Image names by a local path (relative to the YAML file) are uploaded.`,
		Example: `  weftctl apply -f site.yaml -f machines/
  weftctl get machine r1u07 -o yaml | sed s/yellow/red/ | weftctl apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			return a.apply(c.Context(), client, files, dryRun)
		},
	}
	a.filesFlag(c, &files)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "have bootd check the objects, but store nothing")
	return c
}

func (a *manifests) filesFlag(c *cobra.Command, files *[]string) {
	c.Flags().StringArrayVarP(files, "filename", "f", nil, "file, directory, or - for standard input (repeatable)")
}

// apply sends the objects of files to bootd. Nothing is sent before all of them have passed the checks.
func (a *manifests) apply(ctx context.Context, client *api.Client, files []string, dryRun bool) error {
	inputs, err := a.readInputs(ctx, files)
	if err != nil {
		return err
	}
	if err := missingBlobs(ctx, client, inputs); err != nil {
		return err
	}
	return a.sendAll(ctx, client, inputs, dryRun)
}

// refused says why bootd refused an object, at the fields at fault.
func (a *manifests) refused(in input, err error, problem *api.Problem) {
	if len(problem.Errors) > 0 {
		a.printFaults(in.document.Place(err))
		return
	}
	a.printFaults(in.document.Place(fmt.Errorf("%s: %w", in.title(), a.advise(err))))
	if problem.Status == http.StatusConflict && in.object.Meta().ResourceVersion != "" {
		a.note("the file carries an old resourceVersion: the object was changed since; read it again, or remove that line to overwrite")
	}
}

// readInputs decodes and checks every document, sorted so that an object comes before those that refer to it.
func (a *manifests) readInputs(ctx context.Context, files []string) ([]input, error) {
	if len(files) == 0 {
		return nil, usagef("name the files with -f FILE, -f DIRECTORY or -f - (standard input)")
	}
	var inputs []input
	var faults manifest.Faults
	for _, file := range files {
		documents, err := manifest.Read(file, a.In)
		if err != nil {
			return nil, err
		}
		for _, d := range documents {
			in, wrong := a.decode(ctx, d)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			inputs, faults = append(inputs, in), append(faults, wrong...)
		}
	}
	faults = append(faults, duplicates(inputs)...)
	if len(faults) > 0 {
		return nil, faults
	}
	if len(inputs) == 0 {
		return nil, fmt.Errorf("%s: no object in it", strings.Join(files, ", "))
	}
	slices.SortStableFunc(inputs, func(x, y input) int { return order(x.kind) - order(y.kind) })
	return inputs, nil
}

func order(k api.Kind) int {
	return slices.IndexFunc(api.Kinds(), func(other api.Kind) bool { return other.Name == k.Name })
}

func (a *manifests) decode(ctx context.Context, d *manifest.Document) (input, manifest.Faults) {
	o, err := api.DecodeObject(d.JSON)
	if err != nil {
		return input{}, d.Place(err)
	}
	in := input{object: o, kind: api.KindOf(o), document: d}
	if in.kind.Computed {
		return in, manifest.Faults{d.Fault(api.FieldError{Pointer: "/kind", Message: "a " + in.kind.Name + " is compiled from other objects: apply those"})}
	}
	var faults manifest.Faults
	if image, ok := o.(*api.Image); ok {
		in.uploads, faults = a.localFiles(ctx, d, image)
	}
	if len(faults) == 0 {
		faults = d.Place(o.Validate().OrNil())
	}
	return in, faults
}

// duplicates finds objects that occur twice in one apply: the last would win silently.
func duplicates(inputs []input) manifest.Faults {
	seen := map[string]input{}
	var faults manifest.Faults
	for _, in := range inputs {
		if in.object == nil {
			continue
		}
		first, twice := seen[in.title()]
		if twice {
			faults = append(faults, in.document.Fault(api.FieldError{Pointer: "/metadata/name",
				Message: fmt.Sprintf("%s is already in %s:%d", in.title(), first.document.File, first.document.Locate("/metadata/name"))}))
			continue
		}
		seen[in.title()] = in
	}
	return faults
}

// warningText is the quoted text of a Warning header, as in `299 rackweft "text"` (RFC 7234, 5.5).
func warningText(header string) string {
	parts := strings.SplitN(header, " ", 3)
	if len(parts) == 3 {
		if quoted, err := strconv.QuotedPrefix(parts[2]); err == nil {
			if text, err := strconv.Unquote(quoted); err == nil {
				return text
			}
		}
	}
	return header
}

// warningAt gives a warning that begins with a pointer the file and line of its field.
func warningAt(d *manifest.Document, title, text string) string {
	pointer, message, ok := strings.Cut(text, ": ")
	if !ok || !strings.HasPrefix(pointer, "/") {
		return title + ": " + text
	}
	return d.Fault(api.FieldError{Pointer: pointer, Message: message}).Error()
}
