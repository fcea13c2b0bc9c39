package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

// bmcCommands are about the BMCs of Machines.
type bmcCommands struct{ *app }

func (a *bmcCommands) bmcCommand() *cobra.Command {
	machines := &machineCommands{a.app}
	return group("bmc", "Trust the BMCs of Machines, and restart them", a.trustCommand(),
		machines.verbCommand("reset NAME…", "Restart BMCs themselves, which do not answer for minutes then; their servers run on", api.VerbResetBMC))
}

// trustOptions are the flags of trust.
type trustOptions struct {
	set         machineSet
	fingerprint string
	hostKey     string
	output      string
}

func (a *bmcCommands) trustCommand() *cobra.Command {
	var o trustOptions
	const words = "NAME…, -l SELECTOR or --all"
	c := &cobra.Command{
		Use: "trust NAME… | -l SELECTOR | --all", Short: "Pin the certificates and SSH host keys that BMCs present",
		Long: `bootd looks at what each BMC presents now, its certificate and the host key of its SSH server where one answers, and sends
no password. weftctl shows it next to what is pinned. Compare it with the BMC itself: on its own screen, or with what was
written down when it was set up. When you confirm, exactly what was shown is pinned, with your name and the time; a BMC
that presents something else by then is refused. bootd sends a password only to a BMC that presents what is pinned.

A BMC that does not answer stops no other, and neither does one for which there is nothing to do. At the end each Machine
has a line, failures last.

In scripts, --fingerprint says which certificate is expected of one BMC, and nothing is asked. Its SSH host key is then
pinned only if --host-key names it, too.

Exit codes: 0 every BMC is trusted, 1 any failed or nothing was confirmed, 2 usage.`,
		Example: `  weftctl bmc trust r1u07
  weftctl bmc trust -l rack=r1
  weftctl bmc trust r1u07 --fingerprint sha256:0394494a96348fa6e7dfc51099d88788bbaa3dc9808b77bcf0549f1ab78caee6`,
		ValidArgsFunction: a.completeNames("machines"),
		RunE: func(c *cobra.Command, args []string) error {
			t, err := o.expected(c, args)
			if err := errors.Join(o.set.check(c, args, words), checkOutput(o.output), err); err != nil {
				return err
			}
			return a.trust(c.Context(), args, t, o)
		},
	}
	o.set.flags(c)
	outputFlag(c, &o.output)
	c.Flags().StringVar(&o.fingerprint, "fingerprint", "", "the certificate that the one BMC must present, as sha256:HEX; nothing is asked")
	c.Flags().StringVar(&o.hostKey, "host-key", "", "the SSH host key that it must present, as SHA256:BASE64, with --fingerprint")
	return c
}

// expected reads --fingerprint and --host-key.
func (o *trustOptions) expected(c *cobra.Command, names []string) (*trusting, error) {
	t := &trusting{seen: map[string]*api.BMCPresented{}, slots: make(chan struct{}, askAtOnce)}
	if err := t.certificate.UnmarshalText([]byte(o.fingerprint)); err != nil {
		return nil, usagef("--fingerprint: %w", err)
	}
	if err := t.hostKey.UnmarshalText([]byte(o.hostKey)); err != nil {
		return nil, usagef("--host-key: %w", err)
	}
	if t.certificate != "" && len(names) != 1 {
		return nil, usagef("%s: --fingerprint is of one Machine: name it", c.CommandPath())
	}
	if t.hostKey != "" && t.certificate == "" {
		return nil, usagef("%s: --host-key needs --fingerprint", c.CommandPath())
	}
	return t, nil
}

func (a *bmcCommands) trust(ctx context.Context, names []string, t *trusting, o trustOptions) error {
	confirmed := o.set.yes || t.certificate != ""
	o.set.yes = true // the question comes when the answers are there
	client, names, err := a.findMachines(ctx, "trust", names, o.set)
	if err != nil {
		return err
	}
	t.client = client
	looking := &fleet{app: a.app, doing: "look at BMC", output: o.output}
	report := fleetReport{Action: "trust", Machines: looking.run(ctx, names, t.look)}
	var fresh []string
	for _, name := range names {
		if p := t.seen[name]; p != nil {
			a.showPresented(name, p)
			fresh = append(fresh, name)
		}
	}
	if len(fresh) > 0 && !confirmed {
		if err := a.confirm(fmt.Sprintf("Pin this, for %s?", count(len(fresh), "Machine"))); err != nil {
			return err
		}
	}
	pinning := &fleet{app: a.app, doing: "trust", output: o.output}
	report.Machines = append(without(report.Machines, fresh), pinning.run(ctx, fresh, t.pin)...)
	failuresLast(report.Machines)
	return pinning.print(report)
}

// without are the Machines but those named.
func without(all []fleetMachine, names []string) []fleetMachine {
	out := map[string]bool{}
	for _, name := range names {
		out[name] = true
	}
	var left []fleetMachine
	for _, m := range all {
		if !out[m.Machine] {
			left = append(left, m)
		}
	}
	return left
}

// resultShown is of a BMC that presents what is not pinned yet.
const resultShown = "Shown"

// trusting looks at BMCs, and pins what they presented then.
type trusting struct {
	client      *api.Client
	certificate api.Fingerprint // that is expected; empty: a person looks
	hostKey     api.HostKey
	slots       chan struct{}

	mu   sync.Mutex
	seen map[string]*api.BMCPresented // by Machine, where there is something to pin
}

// turn keeps bootd from looking at too many BMCs at once.
func (t *trusting) turn(ctx context.Context, do func() outcome) outcome {
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
		return do()
	case <-ctx.Done():
		return outcome{resultNotAsked, "the command ended before its turn"}
	}
}

// look is the fleetTask that sees what a BMC presents.
func (t *trusting) look(ctx context.Context, machine string, _ func(string)) outcome {
	return t.turn(ctx, func() outcome {
		p, err := t.client.PresentedBMC(ctx, machine)
		if err != nil {
			return failed(err)
		}
		if err := t.unexpected(p); err != nil {
			return failed(err)
		}
		if trusted(p) {
			return outcome{resultDone, "is trusted already: " + pinnedBy(p.Pinned)}
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.seen[machine] = p
		return outcome{resultShown, "presents " + string(p.Certificate.Fingerprint)}
	})
}

// unexpected refuses what is not what a script has named.
func (t *trusting) unexpected(p *api.BMCPresented) error {
	if t.certificate == "" {
		return nil
	}
	if got := p.Certificate.Fingerprint; got != t.certificate {
		return fmt.Errorf("it presents certificate %s, not %s: nothing was pinned", got, t.certificate)
	}
	if t.hostKey == "" {
		p.HostKey = nil // it is not to be pinned
		return nil
	}
	if p.HostKey == nil {
		return fmt.Errorf("no SSH server presents host key %s: nothing was pinned", t.hostKey)
	}
	if got := p.HostKey.Fingerprint; got != t.hostKey {
		return fmt.Errorf("its SSH server presents host key %s, not %s: nothing was pinned", got, t.hostKey)
	}
	return nil
}

// trusted reports whether the spec or a person has pinned all that is presented.
func trusted(p *api.BMCPresented) bool {
	return p.Pinned.Certificate == p.Certificate.Fingerprint && p.Pinned.By != api.PinnedByFirstContact &&
		(p.HostKey == nil || p.Pinned.HostKey == p.HostKey.Fingerprint)
}

// pin is the fleetTask that pins what was shown.
func (t *trusting) pin(ctx context.Context, machine string, _ func(string)) outcome {
	p := t.seen[machine]
	request := api.BMCTrustRequest{Address: p.Address, Certificate: p.Certificate.Fingerprint}
	if p.HostKey != nil {
		request.HostKey = p.HostKey.Fingerprint
	}
	return t.turn(ctx, func() outcome {
		if _, err := t.client.TrustBMC(ctx, machine, request); err != nil {
			return failed(err)
		}
		message := "certificate " + string(request.Certificate)
		if request.HostKey != "" {
			message += ", SSH host key " + string(request.HostKey)
		}
		if p.Pinned.By == api.PinnedBySpec {
			message += "; the pin in its spec was replaced: change its manifest, too"
		}
		return outcome{resultDone, message}
	})
}

// showPresented writes what a BMC presents next to what is pinned, for comparison.
func (a *app) showPresented(machine string, p *api.BMCPresented) {
	a.note("%s  %s", a.err.Paint(terminal.Bold, machine), terminal.Clean(p.Address))
	c := p.Certificate
	a.showPin("certificate", string(p.Pinned.Certificate), pinnedBy(p.Pinned), string(c.Fingerprint), [][2]string{
		{"subject", c.Subject}, {"issuer", c.Issuer}, {"valid", c.NotBefore.Format(time.DateOnly) + " to " + c.NotAfter.Format(time.DateOnly)}, {"key", c.Key},
	})
	if k := p.HostKey; k != nil {
		a.showPin("SSH host key", string(p.Pinned.HostKey), "", string(k.Fingerprint), [][2]string{{"key", k.Type}})
	}
}

// showPin writes one of them.
func (a *app) showPin(what, pinned, by, presented string, details [][2]string) {
	state, colour := "changed", terminal.Red
	switch pinned {
	case "":
		state, colour = "new", terminal.Yellow
	case presented:
		state, colour = "as pinned", terminal.Green
	}
	a.note("  %s: %s", what, a.err.Paint(colour, state))
	if pinned != "" {
		details = append([][2]string{{"pinned", strings.TrimSpace(pinned + "  " + by)}}, details...)
	}
	for _, d := range append([][2]string{{"presented", presented}}, details...) {
		if d[1] != "" {
			a.note("    %-9s  %s", d[0], terminal.Clean(d[1]))
		}
	}
}

// pinnedBy says who has pinned a certificate, and when.
func pinnedBy(p api.BMCPins) string {
	switch {
	case p.By == "":
		return ""
	case p.Time.IsZero():
		return "by " + p.By
	}
	return fmt.Sprintf("by %s, %s", p.By, p.Time.Local().Format("2006-01-02 15:04"))
}
