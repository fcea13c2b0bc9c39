package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/manifest"
)

func (a *applyCommands) editCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "edit KIND NAME | KIND/NAME",
		Short: "Change an object in an editor",
		Long: `edit opens the object in $VISUAL or $EDITOR (else vi) and applies what is saved. When bootd refuses it, or the object
was changed by others in the meantime, nothing is lost: the edited file is kept and its path printed.`,
		Args:              atLeast(1, "KIND NAME, such as machine r1u07"),
		ValidArgsFunction: a.completeObjects,
		RunE: func(c *cobra.Command, args []string) error {
			targets, err := parseTargets(args, false)
			if err != nil {
				return err
			}
			if len(targets) != 1 || len(targets[0].names) != 1 {
				return usagef("edit one object at a time: KIND NAME")
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			return a.edit(c.Context(), client, targets[0].kind, targets[0].names[0])
		},
	}
}

func (a *applyCommands) edit(ctx context.Context, client *api.Client, k api.Kind, name string) error {
	switch {
	case k.Name == "Secret":
		return usagef("the values of a Secret cannot be read back, so an edit would lose them: write a file with all values and apply it")
	case k.Computed:
		return usagef("a %s is compiled from other objects: edit those", k.Name)
	}
	o, err := getOne(ctx, client, k, name)
	if err != nil {
		return err
	}
	before, err := editable(o)
	if err != nil {
		return err
	}
	path, err := writeTemporary(k, name, before)
	if err != nil {
		return err
	}
	after, err := a.openEditor(ctx, path)
	if err != nil {
		return err
	}
	if bytes.Equal(before, after) || len(bytes.TrimSpace(after)) == 0 {
		_ = os.Remove(path)
		return a.printf("%s unchanged\n", title(k, name))
	}
	if err := a.apply(ctx, client, []string{path}, false); err != nil {
		a.note("your edit is kept: weftctl apply -f %s", path)
		return err
	}
	return os.Remove(path)
}

// editable is an object without the fields that rackweft sets; its resourceVersion stays, so that no concurrent
// change is overwritten.
func editable(o api.Object) ([]byte, error) {
	w, err := wishOf(o)
	if err != nil {
		return nil, err
	}
	type metadata struct {
		Name            string `json:"name"`
		ResourceVersion string `json:"resourceVersion"`
		wish
	}
	document := struct {
		api.TypeMeta
		Metadata metadata        `json:"metadata"`
		Spec     json.RawMessage `json:"spec"`
	}{*o.Type(), metadata{o.Meta().Name, o.Meta().ResourceVersion, wish{Labels: w.Labels, Annotations: w.Annotations}}, w.Spec}
	return manifest.YAML(document)
}

func writeTemporary(k api.Kind, name string, text []byte) (string, error) {
	dir, err := os.MkdirTemp("", "weftctl-edit-")
	if err != nil {
		return "", fmt.Errorf("write the file to edit: %w", err)
	}
	path := filepath.Join(dir, strings.ToLower(k.Name)+"-"+name+".yaml")
	return path, os.WriteFile(path, text, 0o600)
}

func (a *applyCommands) openEditor(ctx context.Context, path string) ([]byte, error) {
	editor := "vi"
	for _, name := range []string{"EDITOR", "VISUAL"} {
		if v := strings.TrimSpace(a.Env(name)); v != "" {
			editor = v
		}
	}
	// Through a shell, as git and kubectl do: EDITOR="code --wait" is common.
	cmd := exec.CommandContext(ctx, "sh", "-c", editor+` "$1"`, "sh", path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.In, a.Out, a.Err
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("editor %s: %w; the file is %s", editor, err, path)
	}
	return os.ReadFile(path)
}

// wish holds the fields of an object that people set, each part encoded as JSON; status is not among them.
type wish struct {
	Labels      json.RawMessage `json:"labels,omitempty"`
	Annotations json.RawMessage `json:"annotations,omitempty"`
	Spec        json.RawMessage `json:"spec,omitempty"`
}

func wishOf(o api.Object) (wish, error) {
	raw, err := api.Encode(o)
	if err != nil {
		return wish{}, err
	}
	var all struct {
		Metadata wish            `json:"metadata"`
		Spec     json.RawMessage `json:"spec"`
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		return wish{}, fmt.Errorf("read %s back: %w", o.Meta().Name, err)
	}
	all.Metadata.Spec = all.Spec
	return all.Metadata, nil
}
