package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/show"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

// networkCommands inspect Networks.
type networkCommands struct{ *app }

func (a *networkCommands) networkCommand() *cobra.Command {
	return group("network", "Inspect Networks", a.networkPeersCommand(), a.networkExplainCommand())
}

func (a *networkCommands) networkPeersCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "peers NAME",
		Short: "List the leases of a Network, with the state that hosts report",
		Long: `peers lists the leases of a Network: those of hosts, of Guests that moved with their address, of stock
flannelds, and reservations. STATE is the host's last report about the Network.`,
		Example:           "  weftctl network peers customer-a",
		Args:              exactly(1, "a Network"),
		ValidArgsFunction: a.completeOne("networks"),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			return a.networkPeers(c.Context(), client, args[0], output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table, wide or json")
	complete(c, "output", "table", "wide", "json")
	return c
}

func (a *networkCommands) networkPeers(ctx context.Context, client *api.Client, name, output string) error {
	peers, err := client.NetworkPeers(ctx, name)
	if err != nil {
		return fmt.Errorf("peers of network/%s: %w", name, err)
	}
	switch output {
	case "json":
		return a.indented(peers)
	case "table", "wide":
		return a.printer().Peers(a.out, peers.Peers, output == "wide")
	}
	return usagef("invalid -o %s: want table, wide or json", output)
}

func (a *networkCommands) networkExplainCommand() *cobra.Command {
	var from, to, output string
	c := &cobra.Command{
		Use:   "explain NAME --from END --to END",
		Short: "Trace a packet through a Network",
		Long: `explain traces a packet from one end to another: the host it starts from, the route programmed there for
its destination, the host that delivers it, and what drops it, if anything does. An END is a Guest of the
Network, NETWORK/GUEST for one of another Network, or an address. It uses the objects, the leases and the hosts'
last reports; it sends no packet. The exit code is 1 when the packet does not arrive.`,
		Example: `  weftctl network explain customer-a --from worker-1 --to worker-2
  weftctl network explain customer-a --from worker-1 --to 203.0.113.9`,
		Args:              exactly(1, "a Network"),
		ValidArgsFunction: a.completeOne("networks"),
		RunE: func(c *cobra.Command, args []string) error {
			if from == "" || to == "" {
				return usagef("--from and --to are both required: a Guest, NETWORK/GUEST, or an address")
			}
			return a.networkExplain(c.Context(), args[0], from, to, output)
		},
	}
	c.Flags().StringVar(&from, "from", "", "source of the packet")
	c.Flags().StringVar(&to, "to", "", "destination of the packet")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	complete(c, "output", "text", "json")
	return c
}

func (a *networkCommands) networkExplain(ctx context.Context, name, from, to, output string) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	path, err := client.NetworkPath(ctx, name, from, to)
	if err != nil {
		return fmt.Errorf("explain network/%s: %w", name, err)
	}
	switch output {
	case "json":
		err = a.indented(path)
	case "text":
		err = a.printPath(path)
	default:
		return usagef("invalid -o %s: want text or json", output)
	}
	if err == nil && !path.Delivered {
		err = errQuiet
	}
	return err
}

func (a *networkCommands) printPath(path *api.NetworkPath) error {
	table := show.Table{Header: []string{"HOST", "WHAT HAPPENS"}}
	for _, s := range path.Steps {
		table.Rows = append(table.Rows, []string{s.Host, s.What})
		if s.Entry != "" {
			table.Rows = append(table.Rows, []string{"", "  " + s.Entry})
		}
		if s.Problem != "" {
			table.Rows = append(table.Rows, []string{"", a.out.Paint(terminal.Red, s.Problem)})
		}
	}
	return table.Print(a.out, a.bold)
}
