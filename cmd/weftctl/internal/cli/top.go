package cli

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/show"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
	"github.com/rackweft/rackweft/internal/text"
	"github.com/rackweft/rackweft/internal/wait"
)

// topEvery is how often hosts report (bootd/hostspec/usage.go).
const topEvery = 2 * time.Second

type topOptions struct {
	output, sort, host, network string
	watch                       bool
	hosts, guests               bool
}

// topCommands show the load of hosts and Guests.
type topCommands struct{ *app }

func (a *topCommands) topCommand() *cobra.Command {
	var o topOptions
	c := &cobra.Command{
		Use:   "top [hosts|guests]",
		Short: "Show the current load of hosts and Guests",
		Long: `top shows the load of hosts and Guests over the last two seconds, the busiest first: processors, memory,
disks and network. CPU is the share of all the processors that a host, or a Guest, has. A Guest's memory is what it
uses on its host, and what it has. Hosts measure on request only, so the first output takes some seconds.`,
		Example: `  weftctl top
  weftctl top guests --watch --sort disk
  weftctl top guests --host r1u07 -o json`,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"hosts", "guests"},
		RunE: func(c *cobra.Command, args []string) error {
			o.hosts, o.guests = !slices.Contains(args, "guests"), !slices.Contains(args, "hosts")
			return a.top(c.Context(), o)
		},
	}
	f := c.Flags()
	a.outputFlag(c, &o.output)
	f.BoolVarP(&o.watch, "watch", "w", false, "refresh every two seconds")
	f.StringVar(&o.sort, "sort", "cpu", "sort by cpu, memory, disk, net or name")
	f.StringVar(&o.host, "host", "", "only this host and its Guests")
	f.StringVar(&o.network, "network", "", "only the Guests of this Network")
	complete(c, "sort", topOrders()...)
	_ = c.RegisterFlagCompletionFunc("host", a.completeNames("machines"))    // fails only for a flag that does not exist
	_ = c.RegisterFlagCompletionFunc("network", a.completeNames("networks")) // as above
	return c
}

// weight is the sort key of a line.
type weight struct {
	load   *api.Load
	memory int64
}

// orders are the sort orders, largest first; ties are sorted by name.
func orders() map[string]func(weight) float64 {
	of := func(sum func(api.Load) float64) func(weight) float64 {
		return func(w weight) float64 {
			if w.load == nil {
				return -1
			}
			return sum(*w.load)
		}
	}
	return map[string]func(weight) float64{
		"cpu":    of(func(l api.Load) float64 { return l.CPU }),
		"memory": func(w weight) float64 { return float64(w.memory) },
		"disk":   of(func(l api.Load) float64 { return l.ReadBytes + l.WrittenBytes }),
		"net":    of(func(l api.Load) float64 { return l.ReceivedBytes + l.SentBytes }),
		"name":   func(weight) float64 { return 0 },
	}
}

func topOrders() []string { return slices.Sorted(maps.Keys(orders())) }

func (a *topCommands) top(ctx context.Context, o topOptions) error {
	order, ok := orders()[o.sort]
	if !ok {
		return usagef("invalid --sort %s: want one of %s", o.sort, strings.Join(topOrders(), ", "))
	}
	client, err := a.outputClient(o.output)
	if err != nil {
		return err
	}
	region := a.out.Region()
	for {
		u, err := client.Usage(ctx, o.host)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("load of hosts and guests: %w", err)
		}
		if err == nil {
			o.pick(u, order)
			err = a.printUsage(u, o, region)
		}
		if !o.watch {
			return err
		}
		if wait.For(ctx, topEvery) != nil {
			return nil // Ctrl-C ends a watch
		}
	}
}

// pick keeps what was requested, sorted.
func (o topOptions) pick(u *api.Usage, order func(weight) float64) {
	u.Guests = slices.DeleteFunc(u.Guests, func(g api.GuestLoad) bool {
		return !o.guests || o.network != "" && g.Network != o.network
	})
	u.Hosts = slices.DeleteFunc(u.Hosts, func(api.HostLoad) bool { return !o.hosts })
	slices.SortStableFunc(u.Hosts, func(x, y api.HostLoad) int {
		return cmp.Compare(order(weight{y.Load, y.Memory.Used}), order(weight{x.Load, x.Memory.Used}))
	})
	slices.SortStableFunc(u.Guests, func(x, y api.GuestLoad) int {
		return cmp.Compare(order(weight{y.Load, y.Memory.Used}), order(weight{x.Load, x.Memory.Used}))
	})
}

// printUsage redraws a terminal in a watch, else it adds to the output.
func (a *topCommands) printUsage(u *api.Usage, o topOptions, region *terminal.Region) error {
	if o.output == "json" {
		return a.indented(u)
	}
	var text bytes.Buffer
	err := a.usageTables(&text, u, o)
	if err == nil && o.watch && a.out.Live() {
		region.Draw(strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n"))
		return nil
	}
	if err == nil {
		err = a.printf("%s", text.String())
	}
	return err
}

func (a *topCommands) usageTables(w io.Writer, u *api.Usage, o topOptions) error {
	if o.hosts {
		table := show.Table{Header: append([]string{"HOST", "ZONE", "GUESTS"}, loadHeader()...)}
		for _, h := range u.Hosts {
			row := append([]string{h.Host, cmp.Or(h.Zone, "-"), strconv.Itoa(h.Guests)}, loadCells(h.Load, h.Memory, h.CPUs)...)
			if h.Message != "" {
				row[len(row)-1] = terminal.Clean(h.Message)
			}
			table.Rows = append(table.Rows, row)
		}
		if err := table.Print(w, a.bold); err != nil {
			return err
		}
	}
	if !o.guests {
		return nil
	}
	if o.hosts {
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
	}
	table := show.Table{Header: append([]string{"GUEST", "NETWORK", "HOST"}, loadHeader()...)}
	for _, g := range u.Guests {
		table.Rows = append(table.Rows, append([]string{g.Guest, cmp.Or(g.Network, "-"), g.Host}, loadCells(g.Load, g.Memory, g.CPUs)...))
	}
	return table.Print(w, a.bold)
}

func loadHeader() []string {
	return []string{"CPU", "OF", "MEMORY", "OF", "READ/S", "WRITTEN/S", "OPS/S", "RECEIVED/S", "SENT/S", "REMARK"}
}

// loadCells are the columns of loadHeader.
func loadCells(l *api.Load, m api.MemoryUsage, cpus int) []string {
	cells := []string{"-", "-", "-", "-", "-", "-", "-", "-", "-", ""}
	if cpus > 0 {
		cells[1] = strconv.Itoa(cpus)
	}
	if m.Used > 0 {
		cells[2] = text.Size(m.Used)
	}
	if m.Total > 0 {
		cells[3] = text.Size(m.Total)
	}
	if l == nil {
		return cells
	}
	if cpus > 0 {
		cells[0] = fmt.Sprintf("%.0f%%", 100*l.CPU/float64(cpus))
	}
	for i, rate := range []float64{l.ReadBytes, l.WrittenBytes} {
		cells[4+i] = text.Size(int64(rate))
	}
	cells[6] = fmt.Sprintf("%.0f", l.Reads+l.Writes)
	for i, rate := range []float64{l.ReceivedBytes, l.SentBytes} {
		cells[7+i] = text.Size(int64(rate))
	}
	var remarks []string
	if l.DiskErrors > 0 {
		remarks = append(remarks, fmt.Sprintf("%.1f disk errors/s", l.DiskErrors))
	}
	if l.Dropped > 0 {
		remarks = append(remarks, fmt.Sprintf("%.1f packets/s dropped", l.Dropped))
	}
	cells[9] = strings.Join(remarks, ", ")
	return cells
}
