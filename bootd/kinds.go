package bootd

import (
	"context"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/guest"
	"github.com/rackweft/rackweft/bootd/image"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/subnet"
	"github.com/rackweft/rackweft/bootd/zone"
	"github.com/rackweft/rackweft/hardware"
)

// kind is what bootd does with the objects of one kind, besides storing and serving them. A nil function does not
// apply.
type kind struct {
	name    string
	control func(control.Env) runner     // brings its objects to their desired state
	parts   func(*store.Cache) part.Kind // compiles the hosts' parts from them
}

// runner is a control.Controller of any kind.
type runner interface {
	Run(ctx context.Context) error
}

// kinds lists the kinds that bootd acts on.
func (d *daemon) kinds() []kind {
	return []kind{
		machineKind(d), subnetKind(d), imageKind(d), networkKind(d), guestKind(d), zoneKind(d),
	}
}

// parts lists the kinds of parts that are compiled from objects.
func (d *daemon) parts(cache *store.Cache) []part.Kind {
	var list []part.Kind
	for _, k := range d.kinds() {
		if k.parts != nil {
			list = append(list, k.parts(cache))
		}
	}
	return list
}

func machineKind(d *daemon) kind {
	return kind{name: "Machine", control: func(env control.Env) runner {
		return &machine.Controller{
			Env: env, Decision: d.record.Decision, Nonce: ca.NewTokens(d.keyring).Nonce, BootURL: d.decider.BootURL, MediaURL: d.mediaURL, CA: d.ca.Certificate(), Said: d.consoles.LastLine, Sensors: &d.sensors,
			Use: func(ctx context.Context, e hardware.Endpoint, what string, call func(context.Context, machine.BMC) error) error {
				return d.fleet.Do(ctx, e, what, func(ctx context.Context, b hardware.BMC) error { return call(ctx, b) })
			},
		}
	}}
}

func subnetKind(d *daemon) kind {
	return kind{name: "Subnet", control: func(env control.Env) runner {
		c := &subnet.Controller{Env: env, Served: d.served, Judge: func(s *api.Subnet) (control.Finding, bool) {
			return d.decider.JudgeSubnet(s, d.dhcp.of)
		}}
		return c.Control()
	}}
}

func imageKind(d *daemon) kind {
	return kind{name: "Image", control: func(env control.Env) runner {
		c := &image.Controller{Env: env, Blobs: d.blobs, Sources: d.sources()}
		return c.Control()
	}}
}

func networkKind(d *daemon) kind {
	return kind{name: "Network",
		control: func(env control.Env) runner {
			c := &network.Controller{Env: env, Index: d.nets, Epoch: d.hub.Compiler.Epoch}
			return c.Control()
		},
		parts: func(cache *store.Cache) part.Kind {
			return network.Parts{Cache: cache, Index: d.nets, Keys: d.zones.Keys}.Kind()
		},
	}
}

func guestKind(d *daemon) kind {
	return kind{name: "Guest",
		control: func(env control.Env) runner {
			c := &guest.Controller{
				Env: env, Lease: d.nets.Lease, Epoch: d.hub.Compiler.Epoch,
				Leases: func(ctx context.Context, fn func(map[string]bool)) error {
					return d.nets.Subscribe(ctx, func(ch network.Change) { fn(ch.Networks) })
				},
			}
			return c.Control()
		},
		parts: guest.Parts,
	}
}

func zoneKind(d *daemon) kind {
	return kind{name: "Zone",
		control: func(env control.Env) runner {
			c := &zone.Controller{Env: env, Parts: d.zones, Sessions: d.hub.BGP}
			return c.Control()
		},
		parts: func(cache *store.Cache) part.Kind { return d.zones.With(cache).Kind() },
	}
}
