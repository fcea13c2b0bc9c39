package cli

import (
	"context"
	"fmt"
	"strings"

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
		a.sensorsCommand(),
		a.machineDrainCommand(),
		a.machineUndrainCommand(),
		a.machineBootCommand(),
	)
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
	arguments := "those of os " + i.Spec.OS
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
