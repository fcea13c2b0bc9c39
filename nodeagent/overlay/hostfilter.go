package overlay

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// filterHost keeps VXLAN packets of strangers out and tenants off the host. It
// comes before the Networks themselves: none is ever open.
func (o *Overlay) filterHost(host place, u underlay, networks []network) error {
	complete, err := o.complete(networks)
	if err != nil {
		return err
	}
	if len(networks) == 0 && !complete {
		return nil // of what runs here nothing is known: it stays as it is
	}
	had, err := hasForward(host)
	if err != nil {
		return err
	}
	egress := slices.DeleteFunc(slices.Clone(networks), func(n network) bool { return !n.masquerade })
	forwards := len(egress) > 0 || had && !complete
	rules, err := o.hostRuleset(host, u, networks, forwards, complete)
	if err != nil {
		return err
	}
	changes, err := filter(host.ns, rules)
	if err != nil {
		return err
	}
	set, err := forwardAtUplinks(host, u, had, forwards)
	for _, s := range set {
		changes = append(changes, change(s.String()))
	}
	o.noteHost(networks, u, changes, err)
	return err
}

// complete reports whether the Networks are all that run here.
func (o *Overlay) complete(networks []network) (bool, error) {
	names, err := namespaces(o.dir)
	if err != nil {
		return false, err
	}
	for _, n := range networks {
		names = slices.DeleteFunc(names, func(name string) bool { return name == namespaceName(n.name, n.uid) })
	}
	return len(names) == 0, nil
}

func (o *Overlay) hostRuleset(host place, u underlay, networks []network, forwards, complete bool) (*ruleset, error) {
	if len(networks) == 0 {
		return nil, nil
	}
	v := &vteps{want: map[vtep]bool{}}
	known := map[uint32]bool{}
	for _, n := range networks {
		known[n.vni] = true
		for _, p := range n.peers {
			v.want[vtep{p.vtep, n.vni}] = true
		}
	}
	v.ours = func(vni uint32) bool { return complete || known[vni] }
	if !forwards {
		return hostRules(v, nil), nil
	}
	e := &egressRules{networks: networks}
	var err error
	if e.uplinks, err = uplinks(host, u); err != nil {
		return nil, err
	}
	if e.closed, err = connected(host); err != nil {
		return nil, err
	}
	if e.router, err = isRouter(host); err != nil {
		return nil, err
	}
	return hostRules(v, e), nil
}

// hasForward tells from our table whether this host forwards for Networks.
func hasForward(host place) (bool, error) {
	c, err := nftables.New(nftables.WithNetNSFd(int(host.ns)))
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := again(func() ([]*nftables.Chain, error) { return c.ListChainsOfTableFamily(nftables.TableFamilyINet) })
	if err != nil {
		return false, fmt.Errorf("list the nftables chains: %w", err)
	}
	return slices.ContainsFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name == tableName && ch.Name == "forward" }), nil
}

// forwardAtUplinks lets the answers to tenants in, and only while there are
// such tenants. A host that is a router anyhow stays one.
func forwardAtUplinks(host place, u underlay, had, forwards bool) ([]sysctl, error) {
	if !had && !forwards {
		return nil, nil
	}
	router, err := isRouter(host)
	if err != nil || router {
		return nil, err
	}
	names, err := uplinks(host, u)
	if err != nil {
		return nil, err
	}
	value := map[bool]string{false: "0", true: "1"}[forwards]
	var want []sysctl
	for _, name := range names {
		want = append(want, sysctl{"net/ipv4/conf/" + name + "/forwarding", value})
	}
	return setSysctls(host.ns, want)
}

// noteHost counts what was repaired.
func (o *Overlay) noteHost(networks []network, u underlay, changes []change, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var b strings.Builder
	for _, n := range networks {
		fmt.Fprint(&b, n.uid, n.digest)
	}
	asked := fmt.Sprint(b.String(), u)
	if o.hostSettled == asked && len(changes) > 0 {
		o.hostRepairs += int64(len(changes))
		o.log.Warn("overlay: repaired the host's filter", "changes", len(changes), "first", changes[0])
	}
	o.hostSettled = ""
	if err == nil {
		o.hostSettled = asked
	}
}
