package cli

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/show"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

func (a *showCommands) explainCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "explain machine NAME|MAC | explain KIND[.field.path]",
		Short: "Explain the state of a Machine, or the meaning of a field",
		Long: `explain machine NAME shows the progress of a Machine, what it waits for and what to do, with the decisions that
bootd made about it: each DHCP answer, boot file, script, config and refusal, in order. A MAC works as
well as a name, even the MAC of a server that is not registered.

explain KIND lists the fields of a kind, and explain KIND.field those below a field.`,
		Example: `  weftctl explain machine r1u07
  weftctl explain machine 52:54:00:01:07:00
  weftctl explain machine.spec.links`,
		Args:              atLeast(1, "machine NAME, or KIND"),
		ValidArgsFunction: a.completeObjects,
		RunE: func(c *cobra.Command, args []string) error {
			if word, name, ok := strings.Cut(args[0], "/"); ok && len(args) == 1 {
				args = []string{word, name}
			}
			switch {
			case len(args) == 1:
				return a.explainField(args[0])
			case len(args) > 2:
				return usagef("explain one Machine at a time")
			}
			k, err := lookupKind(args[0])
			if err != nil {
				return err
			}
			if k.Name != "Machine" {
				return usagef("only a Machine can be explained: see `weftctl describe %s %s`", args[0], args[1])
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			return a.explainMachine(c.Context(), client, args[1], output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	complete(c, "output", "text", "json")
	return c
}

func (a *showCommands) explainField(path string) error {
	word, rest, _ := strings.Cut(path, ".")
	k, err := lookupKind(word)
	if err != nil {
		return err
	}
	f, err := show.Fields(k, rest)
	if err != nil {
		return usageError{err}
	}
	if err := a.printf("%s  %s\n", a.bold(path), f.Type); err != nil {
		return err
	}
	if f.Doc != "" {
		_ = a.printf("  %s\n", f.Doc)
	}
	if len(f.Enum) > 0 {
		_ = a.printf("  One of %s.\n", strings.Join(f.Enum, ", "))
	}
	if len(f.Fields) == 0 {
		return nil
	}
	_ = a.printf("\n")
	table := show.Table{Header: []string{"FIELD", "TYPE", "MEANING"}}
	for _, below := range f.Fields {
		doc := below.Doc
		if len(below.Enum) > 0 {
			doc = strings.TrimSpace(doc + " One of " + strings.Join(below.Enum, ", ") + ".")
		}
		table.Rows = append(table.Rows, []string{below.Name, below.Type, doc})
	}
	return table.Print(a.out, a.bold)
}

func (a *showCommands) explainMachine(ctx context.Context, client *api.Client, name, output string) error {
	x, err := client.Explain(ctx, name)
	if api.IsStatus(err, http.StatusNotFound) {
		return fmt.Errorf("nothing is known about %q: `weftctl get machines` lists the Machines, and a MAC is known after its first boot request", name)
	}
	if err != nil {
		return fmt.Errorf("explain machine/%s: %w", name, err)
	}
	if output == "json" {
		return a.indented(x)
	}
	if output != "text" {
		return usagef("invalid -o %s: want text or json", output)
	}
	return a.printExplanation(a.out, name, x)
}

// lastDecisions and lastEvents are how many are shown: a boot makes a dozen of each.
const (
	lastDecisions = 40
	lastEvents    = 15
)

func (a *app) printExplanation(w *terminal.Terminal, name string, x *api.Explanation) error {
	p := show.Printer{Paint: w.Paint, Now: time.Now()}
	section := sectioner(w)
	heading := name
	if x.Machine != nil {
		heading = x.Machine.Metadata.Name
		if stage := p.Stage(x.Machine); stage != "" {
			stage = ", " + stage
			heading += "  " + p.Phase(x.Machine.Status.Phase) + stage
		} else {
			heading += "  " + p.Phase(x.Machine.Status.Phase)
		}
	}
	_, err := fmt.Fprintln(w, w.Paint(terminal.Bold, heading))
	for _, s := range x.Summary {
		_, err = fmt.Fprintf(w, "  %s\n", terminal.Clean(s))
	}
	if x.Machine != nil && x.Machine.Status.Attempt != nil {
		section("BootAttempt")
		err = p.Attempt(w, x.Machine.Status.Attempt)
	}
	if len(x.Decisions) > 0 {
		section("Decisions, the last " + fmt.Sprint(min(len(x.Decisions), lastDecisions)))
		err = p.Decisions(w, tail(x.Decisions, lastDecisions))
	}
	if len(x.Events) > 0 {
		section("Events, the last " + fmt.Sprint(min(len(x.Events), lastEvents)))
		err = p.Events(w, tail(x.Events, lastEvents), false)
	}
	if len(x.Console) > 0 {
		section("Console, the last " + fmt.Sprint(len(x.Console)))
		err = printConsole(w, x.Console)
	}
	if len(x.Origins) > 0 {
		section("Config, and which Layer each part comes from")
		err = p.Origins(w, x.Origins)
	}
	return err
}

func sectioner(w *terminal.Terminal) func(string) {
	return func(name string) {
		_, _ = fmt.Fprintf(w, "\n%s\n", w.Paint(terminal.Bold, name))
	}
}

func tail[T any](list []T, n int) []T { return slices.Clone(list[max(0, len(list)-n):]) }
