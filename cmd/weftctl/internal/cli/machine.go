package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/text"
)

// machineCommands ask Machines for something.
type machineCommands struct{ *app }

func (a *machineCommands) machineCommand() *cobra.Command {
	return group("machine", "Ask something of Machines",
		a.verbCommand("power on|off|reset NAME…", "Switch Machines on or off, or reset them, through their BMCs", api.VerbPower, "on", "off", "reset"),
		a.verbCommand("identify on|off NAME…", "Switch the light that tells a server from its neighbours", api.VerbIdentify, "on", "off"),
		a.verbCommand("reprovision NAME…", "Boot Machines again, from power off to Active", api.VerbReprovision),
		a.verbCommand("inspect NAME…", "Read the inventory again", api.VerbInspect),
		a.machineDrainCommand(),
		a.markCommand(&cobra.Command{Use: "undrain HOST…", Short: "Have drained hosts take Guests again"}, api.DrainAnnotation, false, "not drained any more"),
		a.machineBootCommand(),
	)
}

// verbCommand is a verb; those with arguments have one of them before the names.
func (a *machineCommands) verbCommand(use, short string, verb api.Verb, arguments ...string) *cobra.Command {
	var wait bool
	var timeout time.Duration
	before := min(len(arguments), 1)
	c := &cobra.Command{
		Use: use, Short: short,
		ValidArgsFunction: a.completeVerb(before, arguments),
		Args:              atLeast(before+1, use[strings.IndexByte(use, ' ')+1:]),
		RunE: func(c *cobra.Command, args []string) error {
			r := api.Request{Verb: verb}
			if before > 0 {
				r.Argument = args[0]
				if !slices.Contains(arguments, r.Argument) {
					return usagef("%s %s: it may be %s", verb, r.Argument, strings.Join(arguments, ", "))
				}
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			for _, name := range args[before:] {
				if err := a.verb(ctx, client, name, r, wait); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "wait until it is done")
	c.Flags().DurationVar(&timeout, "timeout", 30*time.Minute, "give up after that long")
	return c
}

func (a *machineCommands) completeVerb(before int, arguments []string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) < before {
			return arguments, cobra.ShellCompDirectiveNoFileComp
		}
		return a.names(c.Context(), "machines"), cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *machineCommands) verb(ctx context.Context, client *api.Client, name string, r api.Request, wait bool) error {
	r.ID = uuid.NewString() // the request is asked for once, however often it is sent
	answer, err := client.Verb(ctx, name, r)
	if err != nil {
		return fmt.Errorf("%s machine/%s: %w", r.Verb, name, err)
	}
	what := strings.TrimSpace(string(r.Verb) + " " + r.Argument)
	if !wait {
		return a.printf("machine/%s %s asked for (request %s)\n", name, what, answer.ID)
	}
	done, err := waitRequest(ctx, client, name, answer.ID)
	if err != nil {
		return fmt.Errorf("%s machine/%s: %w", what, name, err)
	}
	if done.State == api.RequestFailed {
		return fmt.Errorf("%s machine/%s: %s", what, name, done.Message)
	}
	return a.printf("machine/%s %s done\n", name, what)
}

// waitRequest waits until a request is done or has failed.
func waitRequest(ctx context.Context, client *api.Client, machine, id string) (api.Request, error) {
	var found api.Request
	err := client.Watch(ctx, api.KindOf(new(api.Machine)), func(e api.WatchEvent) error {
		m, ok := e.Object.(*api.Machine)
		if !ok || m.Metadata.Name != machine {
			return nil
		}
		if e.Type == api.Deleted {
			return errors.New("it was deleted")
		}
		for _, r := range m.Status.Requests {
			if r.ID == id && (r.State == api.RequestDone || r.State == api.RequestFailed) {
				found = r
				return errReached
			}
		}
		return nil
	})
	if errors.Is(err, errReached) {
		err = nil
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.New("gave up waiting; it may still be done")
	}
	return found, err
}

func (a *machineCommands) machineBootCommand() *cobra.Command {
	return &cobra.Command{
		Use: "boot NAME", Short: "Show what a Machine would boot",
		Args:              exactly(1, "NAME"),
		ValidArgsFunction: a.completeOne("machines"),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			return a.machineBoot(c.Context(), client, args[0])
		},
	}
}

// machineBoot follows a Machine's references as bootd does when it boots.
func (a *machineCommands) machineBoot(ctx context.Context, client *api.Client, name string) error {
	o, err := getOne(ctx, client, api.KindOf(new(api.Machine)), name)
	if err != nil {
		return err
	}
	m := o.(*api.Machine)
	_ = a.printf("%s\n", a.bold(name))
	if m.Spec.Profile == "" {
		return fmt.Errorf("machine/%s has no profile, so it boots nothing: set spec.profile", name)
	}
	o, err = getOne(ctx, client, api.KindOf(new(api.Profile)), m.Spec.Profile)
	if err != nil {
		return err
	}
	p := o.(*api.Profile)
	o, err = getOne(ctx, client, api.KindOf(new(api.Image)), p.Spec.Image)
	if err != nil {
		return err
	}
	a.bootFacts(m, p, o.(*api.Image))
	return nil
}

func (a *machineCommands) bootFacts(m *api.Machine, p *api.Profile, i *api.Image) {
	how := "live, from the network"
	if p.Spec.Install != nil {
		how = "from " + p.Spec.Install.Disk + ", once the image's disk is written to it"
	}
	arguments := "those that os " + i.Spec.OS + " stands for"
	if len(i.Spec.KernelArguments) > 0 {
		arguments = strings.Join(i.Spec.KernelArguments, " ")
	}
	variables := map[string]string{}
	for _, from := range []map[string]string{p.Spec.Variables, m.Spec.Variables} {
		for k, v := range from {
			variables[k] = v
		}
	}
	ready := "no condition yet"
	if c := i.Status.Conditions.Get(api.CondReady); c != nil {
		ready = strings.TrimSpace(string(c.Status) + " " + c.Message)
	}
	list := [][2]string{
		{"boots", how}, {"firmware", m.Spec.Boot.Firmware}, {"boot file", m.Spec.Boot.File}, {"profile", p.Metadata.Name},
		{"image", fmt.Sprintf("%s %s (%s, %s)", i.Metadata.Name, i.Spec.Version, i.Spec.OS, i.Spec.Arch)}, {"image ready", ready},
	}
	for _, role := range imageFiles(i) {
		size := ""
		if f, ok := i.Status.Files[role]; ok {
			size = "  " + text.Size(f.Size)
		}
		list = append(list, [2]string{role, "sha256:" + string(i.Spec.Files[role].SHA256) + size})
	}
	list = append(list, [2]string{"image arguments", arguments}, [2]string{"profile arguments", strings.Join(p.Spec.KernelArguments, " ")},
		[2]string{"layers", strings.Join(p.Spec.Layers, ", ")}, [2]string{"variables", keyValues(variables)},
		[2]string{"ignition", "up to " + i.Spec.IgnitionVersion})
	a.pairs(list)
}
