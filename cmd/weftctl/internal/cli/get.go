package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/manifest"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/selector"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/show"
)

type getOptions struct {
	output   string
	watch    bool
	selector []string
}

// objectCommands list objects, wait for them and delete them.
type objectCommands struct{ *manifests }

func (a *objectCommands) getCommand() *cobra.Command {
	var o getOptions
	c := &cobra.Command{
		Use:   "get KIND [NAME…] | KIND/NAME… | all",
		Short: "Show objects",
		Example: `  weftctl get machines
  weftctl get machines -o wide --watch
  weftctl get machine r1u07 -o yaml
  weftctl get machines -l tier=app -o name
  weftctl get machines -l 'rack in (r1,r2),!retired'`,
		Args:              atLeast(1, "a kind, such as machines, or all"),
		ValidArgsFunction: a.completeObjects,
		RunE: func(c *cobra.Command, args []string) error {
			return a.get(c.Context(), args, o)
		},
	}
	f := c.Flags()
	f.StringVarP(&o.output, "output", "o", "table", "table, wide, json, yaml or name")
	f.BoolVarP(&o.watch, "watch", "w", false, "keep printing every change")
	selectorFlag(c, &o.selector)
	complete(c, "output", "table", "wide", "json", "yaml", "name")
	return c
}

// complete offers the values of a flag.
func complete(c *cobra.Command, flag string, values ...string) {
	_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
}

func (a *objectCommands) get(ctx context.Context, args []string, o getOptions) error {
	if !slices.Contains([]string{"table", "wide", "json", "yaml", "name"}, o.output) {
		return usagef("invalid -o %s: want table, wide, json, yaml or name", o.output)
	}
	match, err := parseSelector(o.selector)
	if err != nil {
		return err
	}
	targets, err := parseTargets(args, true)
	if err != nil {
		return err
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	if o.watch {
		return a.watchObjects(ctx, client, targets, match, o)
	}
	var all []api.Object
	for _, t := range targets {
		objects, err := fetch(ctx, client, t)
		if err != nil {
			return err
		}
		all = append(all, slices.DeleteFunc(objects, func(o api.Object) bool { return !match(o) })...)
	}
	named := slices.ContainsFunc(targets, func(t target) bool { return len(t.names) > 0 })
	return a.printObjects(all, o.output, named && len(all) == 1)
}

// target is a kind and the names that are meant; none means all of them.
type target struct {
	kind  api.Kind
	names []string
}

func (t target) has(name string) bool { return len(t.names) == 0 || slices.Contains(t.names, name) }

// parseTargets reads `KIND [NAME…]`, `KIND/NAME…`, `KIND,KIND` and, where that makes sense, `all`.
func parseTargets(args []string, all bool) ([]target, error) {
	if all && len(args) == 1 && args[0] == "all" {
		var targets []target
		for _, k := range api.Kinds() {
			if !k.Computed {
				targets = append(targets, target{kind: k})
			}
		}
		return targets, nil
	}
	if strings.Contains(args[0], "/") {
		return parsePairs(args)
	}
	var targets []target
	for _, word := range strings.Split(args[0], ",") {
		k, err := lookupKind(word)
		if err != nil {
			return nil, err
		}
		targets = append(targets, target{kind: k, names: args[1:]})
	}
	return targets, nil
}

func parsePairs(args []string) ([]target, error) {
	var targets []target
	for _, arg := range args {
		word, name, ok := strings.Cut(arg, "/")
		if !ok || name == "" {
			return nil, usagef("%q does not have the form KIND/NAME, as the others have", arg)
		}
		k, err := lookupKind(word)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(targets, func(t target) bool { return t.kind.Name == k.Name })
		if i < 0 {
			targets = append(targets, target{kind: k})
			i = len(targets) - 1
		}
		targets[i].names = append(targets[i].names, name)
	}
	return targets, nil
}

func fetch(ctx context.Context, client *api.Client, t target) ([]api.Object, error) {
	if len(t.names) == 0 {
		objects, _, err := client.List(ctx, t.kind)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", t.kind.Plural, err)
		}
		return objects, nil
	}
	var objects []api.Object
	for _, name := range t.names {
		o, err := getOne(ctx, client, t.kind, name)
		if err != nil {
			return nil, err
		}
		objects = append(objects, o)
	}
	return objects, nil
}

// getOne reads an object; the error for a missing one tells the user what to do.
func getOne(ctx context.Context, client *api.Client, k api.Kind, name string) (api.Object, error) {
	o, err := client.Get(ctx, k, name)
	if api.IsStatus(err, http.StatusNotFound) {
		return nil, fmt.Errorf("there is no %s %q: `weftctl get %s` lists them", k.Name, name, k.Plural)
	}
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", title(k, name), err)
	}
	return o, nil
}

// selectorFlag selects objects by their labels, in Kubernetes' syntax.
func selectorFlag(c *cobra.Command, terms *[]string) {
	c.Flags().StringArrayVarP(terms, "selector", "l", nil,
		"by label: key=value, key!=value, 'key in (a,b)', 'key notin (a,b)', key or '!key' (with commas between, or repeated; all must hold)")
}

// parseSelector makes a test of the terms of selectorFlag.
func parseSelector(terms []string) (func(api.Object) bool, error) {
	s, err := selector.Parse(strings.Join(terms, ","))
	if err != nil {
		return nil, usagef("-l: %w", err)
	}
	return func(o api.Object) bool { return s.Matches(o.Meta().Labels) }, nil
}

// printObjects prints objects; single is one that was requested by name, which in JSON is no list.
func (a *app) printObjects(objects []api.Object, output string, single bool) error {
	switch output {
	case "name":
		for _, o := range objects {
			if err := a.printf("%s\n", title(api.KindOf(o), o.Meta().Name)); err != nil {
				return err
			}
		}
		return nil
	case "json":
		return a.printJSON(objects, single)
	case "yaml":
		for i, o := range objects {
			if err := a.printYAML(o, i > 0); err != nil {
				return err
			}
		}
		return nil
	}
	return a.printTables(objects, output == "wide")
}

func (a *app) printYAML(o api.Object, separate bool) error {
	raw, err := manifest.YAML(o)
	if err != nil {
		return err
	}
	if separate {
		raw = append([]byte("---\n"), raw...)
	}
	return a.out.WriteData(raw)
}

func (a *app) printTables(objects []api.Object, wide bool) error {
	if len(objects) == 0 {
		a.note("there are none")
		return nil
	}
	p := a.printer()
	for first := true; len(objects) > 0; first = false {
		k := api.KindOf(objects[0])
		table := show.Table{Header: p.Header(k, wide)}
		n := 0
		for ; n < len(objects) && api.KindOf(objects[n]).Name == k.Name; n++ {
			table.Rows = append(table.Rows, p.Row(objects[n], wide))
		}
		objects = objects[n:]
		if heading := strings.ToUpper(k.Plural); !first || len(objects) > 0 {
			if !first {
				heading = "\n" + heading
			}
			if err := a.printf("%s\n", heading); err != nil {
				return err
			}
		}
		if err := table.Print(a.out, a.bold); err != nil {
			return err
		}
	}
	return nil
}

// watchObjects prints the existing objects, then a line for every change.
func (a *objectCommands) watchObjects(ctx context.Context, client *api.Client, targets []target, match func(api.Object) bool, o getOptions) error {
	if len(targets) != 1 {
		return usagef("--watch is for one kind at a time")
	}
	if targets[0].kind.Computed {
		return usagef("a %s is compiled on request and cannot be watched", targets[0].kind.Name)
	}
	if err := reach(ctx, client); err != nil {
		return err
	}
	w := watchPrinter{app: a.app, options: o}
	err := client.Watch(ctx, targets[0].kind, func(e api.WatchEvent) error {
		if e.Object != nil && (!targets[0].has(e.Object.Meta().Name) || !match(e.Object)) {
			return nil
		}
		return w.event(e)
	})
	if errors.Is(err, context.Canceled) {
		return nil // Ctrl-C ends a watch
	}
	return err
}

// reach checks that bootd answers: a watch would retry silently for ever.
func reach(ctx context.Context, client *api.Client) error {
	resp, err := client.Do(ctx, http.MethodGet, "/healthz", nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

type watchPrinter struct {
	app     *app
	options getOptions
	pending []api.Object // before the list is complete
	synced  bool
	table   show.Table
	printed int
}

func (w *watchPrinter) event(e api.WatchEvent) error {
	switch {
	case e.Type == api.Synced && !w.synced:
		w.synced = true
		return w.begin()
	case e.Type == api.Synced:
		return nil
	case !w.synced:
		w.pending = append(w.pending, e.Object)
		return nil
	}
	return w.change(e)
}

func (w *watchPrinter) isTable() bool {
	return w.options.output == "table" || w.options.output == "wide"
}

func (w *watchPrinter) begin() error {
	if !w.isTable() {
		for _, o := range w.pending {
			if err := w.one(o); err != nil {
				return err
			}
		}
		return nil
	}
	if len(w.pending) == 0 {
		return nil
	}
	p := w.app.printer()
	wide := w.options.output == "wide"
	w.table = show.Table{Header: p.Header(api.KindOf(w.pending[0]), wide)}
	for _, o := range w.pending {
		w.table.Rows = append(w.table.Rows, p.Row(o, wide))
	}
	return w.table.Print(w.app.out, w.app.bold)
}

func (w *watchPrinter) change(e api.WatchEvent) error {
	if !w.isTable() {
		return w.one(e.Object)
	}
	if w.table.Header == nil {
		w.pending = []api.Object{e.Object}
		return w.begin()
	}
	row := w.app.printer().Row(e.Object, w.options.output == "wide")
	if e.Type == api.Deleted {
		row = append(row, "deleted")
	}
	return w.table.Add(w.app.out, row)
}

func (w *watchPrinter) one(o api.Object) error {
	w.printed++
	switch w.options.output {
	case "yaml":
		return w.app.printYAML(o, w.printed > 1)
	case "json":
		return w.app.printJSON([]api.Object{o}, true)
	}
	return w.app.printf("%s\n", title(api.KindOf(o), o.Meta().Name))
}
