package cli

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/show"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

// drainAnnotation is bootd's zone.ShutdownAnnotation.
const drainAnnotation = "rackweft/bgp-drain"

// bgpCommands show and control the BGP of Zones.
type bgpCommands struct{ *app }

func (a *bgpCommands) bgpCommand() *cobra.Command {
	return group("bgp", "Show a Zone's BGP, and drain hosts of traffic",
		a.bgpSessionsCommand(), a.bgpRoutesCommand(), a.bgpTestCommand(),
		a.bgpDrainCommand("drain HOST…", "Drain a host of traffic before maintenance: its neighbours prefer any other path (RFC 8326)", true),
		a.bgpDrainCommand("undrain HOST…", "End the drain: the host takes traffic again", false))
}

// zoneView is a command that shows a view of a Zone.
func (a *bgpCommands) zoneView(c *cobra.Command, show func(ctx context.Context, client *api.Client, zone, output string) error) *cobra.Command {
	var output string
	c.Args = exactly(1, "ZONE")
	c.ValidArgsFunction = a.completeOne("zones")
	c.RunE = func(c *cobra.Command, args []string) error {
		client, err := a.outputClient(output)
		if err != nil {
			return err
		}
		return show(c.Context(), client, args[0], output)
	}
	a.outputFlag(c, &output)
	return c
}

func (a *app) outputFlag(c *cobra.Command, output *string) {
	c.Flags().StringVarP(output, "output", "o", "table", "table or json")
	complete(c, "output", "table", "json")
}

func (a *app) outputClient(output string) (*api.Client, error) {
	if output != "table" && output != "json" {
		return nil, usagef("invalid -o %s: want table or json", output)
	}
	return a.client()
}

// completeNames offers the names of a kind for every word.
func (a *app) completeNames(plural string) cobra.CompletionFunc {
	return func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.names(c.Context(), plural), cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *bgpCommands) bgpSessionsCommand() *cobra.Command {
	down := false
	c := a.zoneView(&cobra.Command{
		Use: "sessions ZONE", Short: "List the BGP sessions of a Zone, as both ends report them",
		Long: `sessions lists every session of a Zone's reflectors: with the other hosts, with each other, and with the
uplinks. A session that only one end reports as established is shown with the other end's report. Sessions with
Guests, and those between hosts that carry the Guests' routes, follow by Network.`,
	}, func(ctx context.Context, client *api.Client, zone, output string) error {
		v, err := client.ZoneSessions(ctx, zone)
		if err != nil {
			return fmt.Errorf("sessions of zone/%s: %w", zone, err)
		}
		if output == "json" {
			return a.indented(v)
		}
		return a.printSessions(v, down)
	})
	c.Flags().BoolVar(&down, "down", false, "only those that are not established")
	return c
}

func (a *bgpCommands) printSessions(v *api.ZoneSessions, down bool) error {
	p := a.printer()
	table := show.Table{Header: []string{"REFLECTOR", "PEER", "ROLE", "STATE", "SINCE", "RECEIVED", "ACCEPTED", "ADVERTISED", "FLAPS", "REMARK"}}
	for _, s := range v.Sessions {
		up := s.Session.State == api.BGPEstablished
		if down && up {
			continue
		}
		state, received, accepted, advertised, flaps := "-", "-", "-", "-", "-"
		if s.Session.State != "" {
			state, flaps = a.sessionState(s.Session.State), strconv.Itoa(s.Session.Flaps)
			received, accepted, advertised = strconv.Itoa(s.Session.Received), strconv.Itoa(s.Session.Accepted), strconv.Itoa(s.Session.Advertised)
		}
		table.Rows = append(table.Rows, []string{s.Host, terminal.Clean(s.Session.Peer), terminal.Clean(s.Session.Role), state, cmp.Or(p.Age(s.Session.Since), "-"), received, accepted, advertised, flaps, remark(s)})
	}
	inside := a.insideSessions(v.Inside, down)
	if len(table.Rows) == 0 && len(inside.Rows) == 0 {
		what := "has no sessions: see `weftctl describe zone " + v.Zone + "`"
		if all := len(v.Sessions) + len(v.Inside); down && all > 0 {
			what = fmt.Sprintf("has all its %s", count(all, "session"))
		}
		a.note("zone/%s %s", v.Zone, what)
		return nil
	}
	if len(table.Rows) > 0 {
		if err := table.Print(a.out, a.bold); err != nil || len(inside.Rows) == 0 {
			return err
		}
		if _, err := fmt.Fprintln(a.out); err != nil {
			return err
		}
	}
	return inside.Print(a.out, a.bold)
}

// insideSessions are the sessions inside Networks.
func (a *bgpCommands) insideSessions(list []api.NetworkSession, down bool) show.Table {
	p := a.printer()
	table := show.Table{Header: []string{"NETWORK", "HOST", "PEER", "ROLE", "STATE", "SINCE", "RECEIVED", "ACCEPTED", "ADVERTISED", "FLAPS", "REMARK"}}
	for _, x := range list {
		s, remark := x.Session, ""
		if s.State == api.BGPEstablished && down {
			continue
		}
		if s.State != api.BGPEstablished {
			remark = terminal.Clean(s.LastError)
		}
		table.Rows = append(table.Rows, []string{terminal.Clean(x.Network), x.Host, terminal.Clean(s.Peer), terminal.Clean(s.Role), a.sessionState(s.State),
			cmp.Or(p.Age(s.Since), "-"), strconv.Itoa(s.Received), strconv.Itoa(s.Accepted), strconv.Itoa(s.Advertised), strconv.Itoa(s.Flaps), remark})
	}
	return table
}

func (a *bgpCommands) sessionState(state string) string {
	colour := terminal.Yellow
	if state == api.BGPEstablished {
		colour = terminal.Green
	}
	return a.out.Paint(colour, terminal.Clean(state))
}

// remark is what the ends report besides the session's state.
func remark(s api.ZoneSession) string {
	var all []string
	if s.Message != "" {
		all = append(all, s.Message)
	}
	if s.Session.State != api.BGPEstablished && s.Session.LastError != "" {
		all = append(all, s.Session.LastError)
	}
	if o := s.Other; o != nil && o.State != s.Session.State {
		all = append(all, strings.TrimSuffix(fmt.Sprintf("%s says %s: %s", s.Session.Peer, o.State, o.LastError), ": "))
	}
	return terminal.Clean(strings.Join(all, "; "))
}

func (a *bgpCommands) bgpRoutesCommand() *cobra.Command {
	return a.zoneView(&cobra.Command{
		Use: "routes ZONE", Short: "List the routes of a Zone: their intended origins, and the reflectors that have them",
	}, func(ctx context.Context, client *api.Client, zone, output string) error {
		v, err := client.ZoneRoutes(ctx, zone)
		if err != nil {
			return fmt.Errorf("routes of zone/%s: %w", zone, err)
		}
		if output == "json" {
			return a.indented(v)
		}
		table := show.Table{Header: []string{"PREFIX", "NEXT HOP", "ORIGIN", "FOR", "AT", "REMARK"}}
		for _, r := range v.Routes {
			hop, remark := "-", ""
			if r.NextHop.IsValid() {
				hop = r.NextHop.String()
			}
			switch {
			case r.Stale:
				remark = "stale: kept while its origin restarts"
			case r.State != "" && r.State != api.ServiceAnnounced:
				remark = strings.TrimSuffix(r.State+": "+r.Reason, ": ")
			case r.Wanted && len(r.At) == 0:
				remark = "no reflector reports it"
			}
			table.Rows = append(table.Rows, []string{r.Prefix.String(), hop, terminal.Clean(r.Origin), routeFor(r), cmp.Or(strings.Join(r.At, ","), "-"), terminal.Clean(remark)})
		}
		if v.Omitted > 0 {
			defer a.note("%s more at the reflectors", count(v.Omitted, "route"))
		}
		return table.Print(a.out, a.bold)
	})
}

// routeFor says what a route is for.
func routeFor(r api.ZoneRoute) string {
	switch {
	case r.Network != "":
		return "network/" + r.Network
	case r.Service != "":
		return "service " + r.Service
	case r.Loopback:
		return "loopback"
	}
	return "-"
}

func (a *bgpCommands) bgpTestCommand() *cobra.Command {
	var from, zone, output string
	c := &cobra.Command{
		Use: "policy-test PREFIX --from HOST|UPLINK [--zone ZONE]", Short: "Show what a Zone's reflectors would do with a prefix, and why",
		Long: `policy-test shows what would happen if a host, or an uplink by its address, advertised a prefix to the Zone's
reflectors: which of them would accept it, to whom they would advertise it, and by which rule. It evaluates the
policies that the hosts receive, and sends no route. It fails when no reflector would accept the prefix.`,
		Example: `  weftctl bgp policy-test 10.5.3.0/24 --from r1u07
  weftctl bgp policy-test 0.0.0.0/0 --from 198.18.8.1 --zone yellow`,
		Args: exactly(1, "PREFIX"),
		RunE: func(c *cobra.Command, args []string) error {
			prefix, err := netip.ParsePrefix(args[0])
			if err != nil {
				return usagef("invalid prefix %q: want one such as 10.5.3.0/24", args[0])
			}
			if from == "" {
				return usagef("say who advertises it: --from HOST, or --from and the address of an uplink")
			}
			return a.policyTest(c.Context(), zone, from, prefix, output)
		},
	}
	c.Flags().StringVar(&from, "from", "", "the host that advertises the prefix, or the address of an uplink")
	c.Flags().StringVar(&zone, "zone", "", "the Zone. Default: the host's own")
	_ = c.RegisterFlagCompletionFunc("from", a.completeNames("machines")) // fails only for a flag that does not exist
	_ = c.RegisterFlagCompletionFunc("zone", a.completeNames("zones"))
	a.outputFlag(c, &output)
	return c
}

func (a *bgpCommands) policyTest(ctx context.Context, zone, from string, prefix netip.Prefix, output string) error {
	client, err := a.outputClient(output)
	if err != nil {
		return err
	}
	if zone == "" {
		m, err := api.Get[api.Machine](ctx, client, from)
		switch {
		case api.IsStatus(err, http.StatusNotFound):
			return usagef("there is no Machine %s: for an uplink, give the Zone with --zone", from)
		case err != nil:
			return fmt.Errorf("find the Zone of machine/%s: %w", from, err)
		case m.Spec.Zone == "":
			return fmt.Errorf("machine/%s is in no Zone: set its spec.zone", from)
		}
		zone = m.Spec.Zone
	}
	v, err := client.TestPolicy(ctx, zone, from, prefix)
	if err != nil {
		return fmt.Errorf("test the policies of zone/%s: %w", zone, err)
	}
	if output == "json" {
		err = a.indented(v)
	} else {
		err = a.printTest(v)
	}
	if err == nil && !v.Accepted {
		return errQuiet
	}
	return err
}

func (a *bgpCommands) printTest(v *api.BGPTest) error {
	verdict := func(yes bool, good, bad string) string {
		if yes {
			return a.out.Paint(terminal.Green, good)
		}
		return a.out.Paint(terminal.Red, bad)
	}
	err := a.printf("%s  %s\n  %s\n", a.bold(fmt.Sprintf("%s from %s in Zone %s", v.Prefix, v.From, v.Zone)), verdict(v.Accepted, "accepted", "denied"), v.Reason)
	for _, r := range v.Reflectors {
		_ = a.printf("\n%s  %s\n  %s\n", a.bold(r.Reflector), verdict(r.Accepted, "accepts", "denies"), r.Reason)
		for _, t := range r.Told {
			err = a.printf("  %s %s: %s\n", verdict(t.Told, "advertises to", "does not advertise to"), t.To, t.Reason)
		}
	}
	return err
}

func (a *bgpCommands) bgpDrainCommand(use, short string, drain bool) *cobra.Command {
	word := "draining: check with `weftctl bgp routes` that its routes and its traffic have moved before you stop it"
	if !drain {
		word = "no longer drained"
	}
	return a.markCommand(&cobra.Command{Use: use, Short: short}, drainAnnotation, drain, word)
}
