package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/manifest"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/show"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

// sensorsCommand shows what bootd read last: no BMC is asked.
func (a *machineCommands) sensorsCommand() *cobra.Command {
	var set machineSet
	var output string
	const words = "NAME…, -l SELECTOR or --all"
	c := &cobra.Command{
		Use: "sensors NAME… | -l SELECTOR | --all", Short: "Show temperatures, fans and power of Machines, as their BMCs measure them",
		Long: `bootd asks the BMCs of Active Machines every 5 minutes what their sensors measure, over Redfish. This shows what it read last,
with the limits beyond which a BMC calls it critical. A value beyond such a limit, and what a BMC calls a warning or critical,
is in the condition Healthy, too. A Machine without readings stops no other.

Exit codes: 0 all were shown, 1 a Machine has none, 2 usage.`,
		Example: `  weftctl machine sensors r1u07
  weftctl machine sensors -l rack=r1 -o json`,
		ValidArgsFunction: a.completeNames("machines"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := errors.Join(set.check(c, args, words), checkOutput(output)); err != nil {
				return err
			}
			return a.sensors(c.Context(), args, set, output)
		},
	}
	selectorFlag(c, &set.selector)
	c.Flags().BoolVar(&set.all, "all", false, "every Machine")
	outputFlag(c, &output)
	return c
}

// machineSensors is one Machine of the output as JSON and YAML.
type machineSensors struct {
	Machine string `json:"machine"`
	*api.Sensors
}

func (a *machineCommands) sensors(ctx context.Context, names []string, set machineSet, output string) error {
	set.yes = true // nothing is changed
	client, names, err := a.findMachines(ctx, "sensors", names, set)
	if err != nil {
		return err
	}
	all, failed := []machineSensors{}, 0
	for _, name := range names {
		s, err := client.Sensors(ctx, name)
		if err != nil {
			failed++
			a.warn("%s", err)
			continue
		}
		all = append(all, machineSensors{name, s})
	}
	if err := a.printSensors(all, output); err != nil || failed == 0 {
		return err
	}
	return fmt.Errorf("%s of %d without readings", count(failed, "Machine"), len(names))
}

func (a *machineCommands) printSensors(all []machineSensors, output string) error {
	switch {
	case output == "json":
		return a.indented(all)
	case output == "yaml":
		raw, err := manifest.YAML(all)
		if err != nil {
			return err
		}
		return a.out.WriteData(raw)
	case len(all) == 0:
		return nil
	}
	return a.sensorTable(all)
}

func (a *machineCommands) sensorTable(all []machineSensors) error {
	t := show.Table{Header: []string{"MACHINE", "SENSOR", "VALUE", "HEALTH", "CRITICAL"}}
	for _, m := range all {
		for _, r := range m.Readings {
			t.Rows = append(t.Rows, []string{m.Machine, terminal.Clean(r.Name), strings.TrimSpace(fmt.Sprintf("%.4g %s", r.Value, unit(r.Unit))), terminal.Clean(r.Health), limits(r)})
		}
		if len(m.Readings) == 0 {
			a.warn("the BMC of %s reports no sensors", m.Machine)
		}
	}
	if len(t.Rows) == 0 {
		return nil
	}
	return t.Print(a.out, a.bold)
}

func unit(ucum string) string {
	if ucum == "Cel" {
		return "°C"
	}
	return ucum
}

func limits(r api.SensorReading) string {
	var words []string
	if r.LowCritical != nil {
		words = append(words, fmt.Sprintf("≤ %.4g", *r.LowCritical))
	}
	if r.HighCritical != nil {
		words = append(words, fmt.Sprintf("≥ %.4g", *r.HighCritical))
	}
	return strings.Join(words, ", ")
}
